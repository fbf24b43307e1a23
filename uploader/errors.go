package uploader

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/eddy-backup/eddy/internal/hint"
)

// advice says what to do about the refusals that operators meet. The codes are
// those of the S3 API and of the stores that imitate it.
var advice = map[string]string{
	"NoSuchBucket":                 "create the bucket, or correct store.url; names are case-sensitive",
	"InvalidAccessKeyId":           "the access key is unknown to this store: look at AWS_ACCESS_KEY_ID, the profile, and the endpoint",
	"SignatureDoesNotMatch":        "the secret key is wrong: look at AWS_SECRET_ACCESS_KEY or the profile",
	"AccessDenied":                 "these credentials may not do this: deploy/bucket-writer-policy.json lists the rights that eddy needs",
	"Forbidden":                    "these credentials may not do this: deploy/bucket-writer-policy.json lists the rights that eddy needs",
	"ExpiredToken":                 "the session's credentials have expired: log in again, or use a role",
	"PermanentRedirect":            "the bucket is in another region: set store.region",
	"AuthorizationHeaderMalformed": "the bucket is in another region: set store.region",
	"RequestTimeTooSkewed":         "this machine's clock is wrong: set it by NTP",
	"InvalidObjectState":           "the object was moved to an archive class: bring it back first",
	"NotImplemented":               "this store lacks a call that eddy needs",
	"InvalidRequest":               "this store refuses a checksum or header that eddy sends; say which store it is in a bug report",
}

// classify gives an error of the SDK one of the store's sentinels and a hint. It
// keeps the operation and the thing, and no header, URL or credential.
func classify(op, key string, err error) error {
	if err == nil {
		return nil
	}
	what := op
	if key != "" {
		what += " " + key
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%s: %w", what, err)
	}
	code, message, status := "", "", 0
	var api smithy.APIError
	if errors.As(err, &api) {
		code, message = api.ErrorCode(), api.ErrorMessage()
	}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	said := code
	if message != "" && message != code {
		said += ": " + message
	}
	switch {
	case code == "NoSuchBucket":
		return hint.Add(fmt.Errorf("%s: %w: %s", what, ErrRefused, said), advice[code])
	case status == http.StatusNotFound, code == "NoSuchKey", code == "NotFound", code == "NoSuchUpload":
		return fmt.Errorf("%s: %w (%s)", what, ErrNotFound, said)
	case status == http.StatusPreconditionFailed, status == http.StatusConflict:
		return fmt.Errorf("%s: %w (%s)", what, ErrPrecondition, said)
	case code == "BadDigest", code == "XAmzContentChecksumMismatch":
		return fmt.Errorf("%s: %w: %s", what, ErrDamaged, said)
	case status >= 300 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout:
		if said == "" {
			said = http.StatusText(status)
		}
		text := advice[code]
		if text == "" {
			text = advice[map[int]string{http.StatusForbidden: "AccessDenied", http.StatusMovedPermanently: "PermanentRedirect"}[status]]
		}
		return hint.Add(fmt.Errorf("%s: %w: %s", what, ErrRefused, said), text)
	case isCredentials(err):
		return hint.Add(fmt.Errorf("%s: %w: no credentials were found", what, ErrRefused),
			"eddy takes them from the AWS chain only: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role")
	case status >= 500 || status == http.StatusTooManyRequests:
		return hint.Add(fmt.Errorf("%s: %w: it answers %d %s", what, ErrUnreachable, status, said), "the store is in trouble or overloaded; try again later")
	default:
		return hint.Add(fmt.Errorf("%s: %w: %w", what, ErrUnreachable, root(err)), "look at the endpoint, the network, and DNS")
	}
}

func isCredentials(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if op, ok := err.(*smithy.OperationError); ok {
			err = op.Err
		}
		if _, ok := err.(interface{ CredentialsError() }); ok {
			return true
		}
	}
	return false
}

// root is the innermost error: what the network said, without the SDK's wrapping
// of operation, request id and URL.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// passing tells an error that another attempt may cure.
func passing(err error) bool {
	return errors.Is(err, ErrUnreachable)
}
