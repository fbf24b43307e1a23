package uploader

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// askBucket reads what the bucket says of itself. What the credentials may not
// read stays Unknown.
func (t *trial) askBucket(ctx context.Context) {
	t.caps.Versioning = t.facility(t.once(ctx, func(ctx context.Context) error {
		out, err := t.s.api.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &t.s.bucket})
		if err == nil && out.Status != types.BucketVersioningStatusEnabled {
			err = errAbsent
		}
		return err
	}))
	t.caps.ObjectLock = t.facility(t.once(ctx, func(ctx context.Context) error {
		out, err := t.s.api.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &t.s.bucket})
		if err == nil && (out.ObjectLockConfiguration == nil || out.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled) {
			err = errAbsent
		}
		return err
	}))
	t.caps.LifecycleRead = t.facility(t.once(ctx, func(ctx context.Context) error {
		out, err := t.s.api.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &t.s.bucket})
		if err == nil {
			t.caps.Lifecycle = rules(out.Rules)
		}
		var api smithy.APIError
		if errors.As(err, &api) && api.ErrorCode() == "NoSuchLifecycleConfiguration" {
			err = nil // it may have rules, and has none
		}
		return err
	}))
}

// errAbsent: the bucket answers, and has no such thing.
var errAbsent = &storeError{kind: ErrNotFound, code: "NotFound"}

// facility judges a question about the bucket.
func (t *trial) facility(err error) Answer {
	switch {
	case err == nil:
		return Kept
	case hasCode(err, "NotFound", "ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound", "NotImplemented", "MethodNotAllowed"):
		return Absent
	case hasCode(err, "AccessDenied", "AllAccessDisabled"):
		return Refused
	default:
		return Unknown
	}
}

// rules are those that are in force, as far as eddy is touched by them.
func rules(all []types.LifecycleRule) []Rule {
	var out []Rule
	for _, l := range all {
		if l.Status != types.ExpirationStatusEnabled {
			continue
		}
		r := Rule{ID: oneLine("", aws.ToString(l.ID))}
		//lint:ignore SA1019 buckets still have rules of the old form
		r.Prefix = aws.ToString(l.Prefix)
		if f := l.Filter; f != nil {
			if f.Prefix != nil {
				r.Prefix = *f.Prefix
			}
			r.Tagged = f.Tag != nil
			if f.And != nil {
				r.Prefix, r.Tagged = aws.ToString(f.And.Prefix), len(f.And.Tags) > 0
			}
		}
		if e := l.Expiration; e != nil {
			r.ExpireDays = days(e.Days, e.Date != nil)
		}
		if e := l.NoncurrentVersionExpiration; e != nil {
			r.OldDays = days(e.NoncurrentDays, false)
		}
		if a := l.AbortIncompleteMultipartUpload; a != nil {
			r.AbortDays = days(a.DaysAfterInitiation, false)
		}
		for _, m := range l.Transitions {
			if isArchived(string(m.StorageClass)) {
				// 0 days are allowed here: at the next midnight.
				r.ArchiveDays = max(1, days(m.Days, m.Date != nil))
			}
		}
		out = append(out, r)
	}
	return out
}

func days(n *int32, dated bool) int {
	if dated {
		return 1
	}
	return int(aws.ToInt32(n))
}
