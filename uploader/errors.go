package uploader

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/eddy-backup/eddy/internal/hint"
)

// storeError is a call that failed. It holds no header, no URL and no
// credential, whatever the SDK's own error has.
type storeError struct {
	op, key string
	kind    error  // a sentinel of this package
	code    string // of the S3 API; "" where the store gave none
	said    string // one line: what store, network or filesystem said
	cause   error  // for errors.Is; not printed
	again   bool   // another attempt may cure it
}

func (e *storeError) Error() string {
	text := strings.TrimSuffix(e.op+" "+e.key, " ") + ": " + e.kind.Error()
	if e.said != "" {
		text += ": " + e.said
	}
	return text
}

func (e *storeError) Unwrap() []error {
	if e.cause == nil {
		return []error{e.kind}
	}
	return []error{e.kind, e.cause}
}

// passing tells an error that another attempt may cure.
func passing(err error) bool {
	var e *storeError
	return errors.As(err, &e) && e.again
}

// hasCode tells whether the store answered with one of the codes. Codes are
// compared, not the SDK's types: errors.As finds those not on every path.
func hasCode(err error, codes ...string) bool {
	var e *storeError
	return errors.As(err, &e) && slices.Contains(codes, e.code)
}

// What to do about the answers that operators meet. The codes are those of the
// S3 API and of the stores that imitate it.
const (
	adviceRights   = "these credentials may not do this: grant them deploy/s3/policy-writer.json"
	adviceRegion   = "the bucket is in another region: set `store.region: REGION`"
	adviceChecksum = "this store refuses a header that eddy sends; AWS_REQUEST_CHECKSUM_CALCULATION=when_required in the environment leaves out the checksums that are optional"
)

var advice = map[string]string{
	"NoSuchBucket":                 "create the bucket, or set `store.url: s3://BUCKET/PREFIX` to the one that there is",
	"InvalidBucketName":            "set `store.url: s3://BUCKET/PREFIX` to a bucket's name",
	"NoSuchUpload":                 "the upload was aborted by somebody, or by a lifecycle rule that is shorter than an upload takes; the next run begins it anew",
	"InvalidAccessKeyId":           "the access key is unknown to this store: look at AWS_ACCESS_KEY_ID, the profile, and the endpoint",
	"XAdminUserNotFound":           "the access key is unknown to this store: look at AWS_ACCESS_KEY_ID, the profile, and the endpoint", // versitygw
	"SignatureDoesNotMatch":        "the secret key is wrong: look at AWS_SECRET_ACCESS_KEY or the profile",
	"AccessDenied":                 adviceRights,
	"AllAccessDisabled":            adviceRights,
	"ExpiredToken":                 "the session's credentials have expired: log in again, or use a role",
	"InvalidToken":                 "the session token is not valid: look at AWS_SESSION_TOKEN, or log in again",
	"TokenRefreshRequired":         "the session's credentials have expired: log in again, or use a role",
	"PermanentRedirect":            adviceRegion,
	"AuthorizationHeaderMalformed": adviceRegion,
	"RequestTimeTooSkewed":         "this machine's clock is wrong; as root: `timedatectl set-ntp true`",
	"InvalidObjectState":           "the object was moved to an archive class: bring it back first",
	"InvalidStorageClass":          "the store does not know the class: take store.storage_class out of eddy.yaml",
	"EntityTooLarge":               "the store takes no objects of this size",
	"QuotaExceeded":                "the store is full: make room, or keep fewer: `eddy expire --last 1 --apply`",
	"NotImplemented":               "this store lacks a call, or a header, that eddy needs",
	"InvalidRequest":               adviceChecksum,
	"InvalidArgument":              adviceChecksum,
}

// Codes that decide by themselves, whatever the status.
var (
	// Not every 404 is about the object: versitygw says it of an unknown user, and
	// a wrong key must not make a full bucket look empty. HEAD has no body: the SDK
	// makes NotFound of that.
	absentCodes  = []string{"", "NoSuchKey", "NoSuchVersion", "NotFound"}
	damagedCodes = []string{"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
	// A conflict of two writers at the same moment: S3 asks to try again, and the
	// next answer says who was first.
	conflictCodes = []string{"ConditionalRequestConflict", "OperationAborted"}
	passingCodes  = []string{
		"RequestTimeout", "RequestTimeoutException", "IncompleteBody", "SlowDown", "InternalError", "ServiceUnavailable",
		"Throttling", "ThrottlingException", "TooManyRequests", "BandwidthLimitExceeded", "RequestLimitExceeded",
	}
)

// classify turns an error of the SDK, the network or our own reading into a
// storeError with one sentinel, and a hint where there is something to do.
func classify(op, key string, err error) error {
	if err == nil {
		return nil
	}
	e := &storeError{op: op, key: key}
	var own *storeError
	if errors.As(err, &own) { // found by our own checks of an answer
		*e = *own
		e.op, e.key = op, key
		if todo := cmp.Or(hint.Of(err), advice[e.code]); todo != "" {
			return hint.Add(e, todo)
		}
		return e
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		e.code, e.said = api.ErrorCode(), oneLine(api.ErrorCode(), api.ErrorMessage())
	}
	status := 0
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	var creds *credentialsError
	if errors.As(err, &creds) {
		e.kind, e.said, e.again = ErrRefused, "no credentials: "+oneLine("", root(creds).Error()), creds.again
		return hint.Add(e, "eddy takes credentials from the AWS chain only: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role")
	}
	if status == 0 && e.code == "" {
		return network(e, err)
	}
	todo := advice[e.code]
	switch {
	case e.code == "NoSuchUpload":
		e.kind = ErrUploadGone
	case slices.Contains(damagedCodes, e.code):
		e.kind, e.again = ErrDamaged, true // on the way, most likely
	case slices.Contains(conflictCodes, e.code):
		e.kind, e.again = ErrPrecondition, true
	case status == http.StatusPreconditionFailed:
		e.kind = ErrPrecondition
	case status/100 == 2: // cut off, or not of an S3 store
		e.kind, e.again = ErrUnreachable, true
		e.said, todo = oneLine("", "an answer that cannot be read: "+root(err).Error()), "look whether store.endpoint is an S3 store, or something in between answers"
	case status == http.StatusNotFound && slices.Contains(absentCodes, e.code):
		e.kind = ErrNotFound
	case status == http.StatusRequestedRangeNotSatisfiable:
		return tooShort(op, key)
	case status == http.StatusNotImplemented:
		e.kind = ErrRefused
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, slices.Contains(passingCodes, e.code):
		e.kind, e.again = ErrUnreachable, true
		todo = "the store is in trouble or overloaded: try again later"
	default:
		e.kind = ErrRefused
		switch { // an answer to HEAD has no body and so no code
		case todo != "":
		case status == http.StatusForbidden:
			todo = adviceRights
		case status/100 == 3:
			todo = adviceRegion
		}
	}
	if e.said == "" || e.said == e.code {
		e.said = strings.TrimSpace(fmt.Sprintf("%d %s", status, e.code))
	}
	if todo == "" {
		return e
	}
	return hint.Add(e, todo)
}

// network judges an error without any answer.
func network(e *storeError, err error) error {
	e.kind, e.again = ErrUnreachable, true
	todo := "look at store.endpoint, the network and its proxies"
	var (
		op      *net.OpError
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.said = "no answer in time"
	case errors.As(err, &cert), errors.As(err, &unknown):
		e.again = false
		e.said, todo = root(err).Error(), "the store's certificate is not trusted here: name its CA by AWS_CA_BUNDLE"
	case errors.As(err, &dns):
		e.said, todo = dns.Error(), "look at store.endpoint, store.region and DNS"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.again = false
		e.said, todo = "it speaks http, not https", "set `store.endpoint: http://HOST:PORT`"
	case strings.Contains(err.Error(), "checksum did not match"): // the SDK's own check of a whole answer
		e.kind, e.said, todo = ErrDamaged, "an answer with another checksum than it says", ""
	case errors.As(err, &op):
		e.said = op.Error() // with the address
	default:
		e.said = root(err).Error()
	}
	e.said = oneLine("", e.said)
	if todo == "" {
		return e
	}
	return hint.Add(e, todo)
}

// tooShort: a range was asked for that the object does not have.
func tooShort(op, key string) error {
	return &storeError{op: op, key: key, kind: ErrDamaged, said: "the object ends before the range that was asked for", cause: errShort}
}

// oneLine joins a code and a message of somebody else's into a line of bounded
// length.
func oneLine(code, message string) string {
	const limit = 300
	text := strings.Join(strings.Fields(message), " ")
	if r := []rune(text); len(r) > limit {
		text = string(r[:limit]) + "..."
	}
	switch {
	case text == "" || text == code:
		return code
	case code == "":
		return text
	default:
		return code + ": " + text
	}
}

// root is the innermost error: what the network or the kernel said, without the
// wrapping that names requests, URLs and paths.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
