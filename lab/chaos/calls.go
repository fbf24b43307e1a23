package chaos

import (
	"net/http"
	"strings"
)

// The calls that can be lied about.
const (
	opPart     = "part"
	opComplete = "complete"
	opCreate   = "create"
	opPut      = "put" // a small object
	opGet      = "get"
	opDelete   = "delete"
	opOther    = "other"
)

// callOf names a request's call and the key and part that it is about.
func callOf(r *http.Request) (op, key, part string) {
	q := r.URL.Query()
	key = strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return opPart, key, q.Get("partNumber")
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return opComplete, key, ""
	case r.Method == http.MethodPost && q.Has("uploads"):
		return opCreate, key, ""
	case r.Method == http.MethodPost && q.Has("delete"):
		return opDelete, key, ""
	case r.Method == http.MethodPut && len(q) <= 1: // x-id at most
		return opPut, key, ""
	case r.Method == http.MethodGet && strings.Contains(key, "/data/"):
		return opGet, key, ""
	}
	return opOther, key, ""
}
