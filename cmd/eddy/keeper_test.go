package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// keeper starts a dead man's switch; KEEPER is its address, and keeper.log has a
// line for each call. What comes below /broken is not found.
func keeper(ts *testscript.TestScript, _ bool, args []string) {
	log := "keeper.log"
	if len(args) == 1 {
		log = args[0]
	}
	log = ts.MkAbs(log)
	var mu sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintln(f, r.Method, r.URL.RequestURI())
			err = errors.Join(err, f.Close())
		}
		if err != nil || strings.HasPrefix(r.URL.Path, "/broken/") {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	ts.Defer(s.Close)
	ts.Setenv("KEEPER", s.URL)
}
