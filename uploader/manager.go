package uploader

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// managed writes a small object through feature/s3/manager: one PutObject up to
// 5 MiB, a multipart upload above. Manager and client each decide for themselves
// whether checksums are wanted, so both are told. It returns the ETag.
func managed(ctx context.Context, api manager.UploadAPIClient, sums aws.RequestChecksumCalculation, in *s3.PutObjectInput) (etag *string, err error) {
	//lint:ignore SA1019 eddy is given this package to build on; of its successor only a v0 exists, which aborts every upload that fails
	out, err := manager.NewUploader(api, func(u *manager.Uploader) {
		u.RequestChecksumCalculation = sums
		u.ClientOptions = append(u.ClientOptions, func(o *s3.Options) { o.RequestChecksumCalculation = sums })
	}).Upload(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.ETag, nil
}
