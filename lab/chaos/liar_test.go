package chaos

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// shop is a store that takes everything.
func shop(t *testing.T) (l *liar, took *[]string) {
	took = new([]string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		*took = append(*took, r.Method+" "+r.URL.RequestURI()+" "+r.Host+" "+string(b))
		w.Header().Set("ETag", `"right"`)
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "0123456789")
		}
	}))
	t.Cleanup(srv.Close)
	l, err := newLiar(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	return l, took
}

func ask(t *testing.T, l *liar, method, uri, body string) (status int, etag, answer string, err error) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+l.addr()+uri, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "signed.example"
	tr := &http.Transport{DisableKeepAlives: true} // nothing is tried again behind our back
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("ETag"), string(b), err
}

const partURI = "/b/p/data/id/vol-0000.tar.zst?partNumber=3&uploadId=u"

func TestLiarTruth(t *testing.T) {
	l, took := shop(t)
	for range 2 {
		if status, etag, _, err := ask(t, l, "PUT", partURI, "content"); err != nil || status != 200 || etag != `"right"` {
			t.Fatal(status, etag, err)
		}
	}
	if want := "PUT " + partURI + " signed.example content"; len(*took) != 2 || (*took)[0] != want {
		t.Errorf("the store got %q, want twice %q", *took, want)
	}
	got := l.ledger()[partID{"b/p/data/id/vol-0000.tar.zst", "3"}]
	if got != (sent{bytes: 14, acked: 14, times: 2}) || l.received() != 14 {
		t.Errorf("%+v, %d bytes", got, l.received())
	}
	l.forget()
	if len(l.ledger()) != 0 || l.received() != 14 {
		t.Error("not forgotten, or too much")
	}
}

func TestLies(t *testing.T) {
	complete := "/b/p/data/id/vol-0000.tar.zst?uploadId=u"
	for _, c := range []struct {
		name, method, uri string
		lie               lie
		reaches, broken   bool
		status            int
		etag, answer      string
		told              int
	}{
		{"refuse", "PUT", partURI, on(opPart, 1, refuse(503, "SlowDown")), false, false, 503, "", "<Code>SlowDown</Code>", 1},
		{"below a 200", "POST", complete, on(opComplete, 1, refuse(200, "InternalError")), false, false, 200, "", "<Code>InternalError</Code>", 1},
		{"done, but", "POST", complete, on(opComplete, 1, doneBut("InternalError")), true, false, 200, "", "<Code>InternalError</Code>", 1},
		{"lost", "POST", complete, on(opComplete, 1, lost), true, true, 0, "", "", 1},
		{"swallowed", "PUT", partURI, on(opPart, 1, swallowed), false, false, 200, `"9a0364b9e99bb480dd25e1f0284c8555"`, "", 1},
		{"wrong ETag", "PUT", partURI, on(opPart, 1, wrongETag), true, false, 200, `"` + wrongMD5 + `"`, "", 1},
		{"truncated", "GET", "/b/p/data/id/vol-0000.tar.zst", on(opGet, 1, truncated), true, true, 200, `"right"`, "01234", 1},
		{"flipped", "GET", "/b/p/data/id/vol-0000.tar.zst", on(opGet, 1, flipped), true, false, 200, `"right"`, "01234%6789", 1},
		{"of another call", "PUT", partURI, on(opGet, 1, flipped), true, false, 200, `"right"`, "", 0},
		{"of another key", "PUT", partURI, keyed("manifest.json", swallowed), true, false, 200, `"right"`, "", 0},
		{"the second time only", "PUT", partURI, every(2, refuse(503, "SlowDown")), true, false, 200, `"right"`, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, took := shop(t)
			l.tell(c.lie)
			status, etag, answer, err := ask(t, l, c.method, c.uri, "content")
			if (err != nil) != c.broken || status != c.status || !strings.Contains(answer, c.answer) || !c.broken && etag != c.etag {
				t.Errorf("%d, ETag %s, %q, %v", status, etag, answer, err)
			}
			if reached := len(*took) > 0; reached != c.reaches {
				t.Errorf("reached the store: %t", reached)
			}
			if got := l.lied(); got != c.told {
				t.Errorf("%d lies counted, want %d", got, c.told)
			}
			l.tell(nil)
			if status, etag, _, err := ask(t, l, "PUT", partURI, "again"); err != nil || status != 200 || etag != `"right"` {
				t.Errorf("the truth after it: %d, %s, %v", status, etag, err)
			}
		})
	}
}

func TestCallOf(t *testing.T) {
	for uri, want := range map[string]string{
		"PUT /b/k?partNumber=1&uploadId=u&x-id=UploadPart": opPart,
		"POST /b/k?uploadId=u":                             opComplete,
		"POST /b/k?uploads=":                               opCreate,
		"PUT /b/k?x-id=PutObject":                          opPut,
		"GET /b/p/c/data/id/vol-0000.tar.zst?x-id=Get":     opGet,
		"GET /b/p/c/latest.json":                           opOther,
		"GET /b?list-type=2&prefix=p":                      opOther,
		"DELETE /b/k?uploadId=u":                           opOther,
		"POST /b?delete=":                                  opDelete,
	} {
		method, url, _ := strings.Cut(uri, " ")
		req, err := http.NewRequest(method, "http://x"+url, bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := callOf(req); got != want {
			t.Errorf("%s is %s, want %s", uri, got, want)
		}
	}
}

func TestLiarCopies(t *testing.T) {
	l, _ := shop(t)
	req, err := http.NewRequest("PUT", "http://"+l.addr()+partURI, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Copy-Source", "b/k")
	req.Header.Set("X-Amz-Copy-Source-Range", "bytes=100-199")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if l.received() != 0 || l.stored() != 100 || len(l.ledger()) != 0 {
		t.Errorf("%d received, %d stored, %d parts", l.received(), l.stored(), len(l.ledger()))
	}
}
