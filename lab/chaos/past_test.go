package chaos

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

const listing = `<?xml version="1.0"?>
<ListBucketResult><Name>b</Name><Prefix>p/</Prefix>
<Contents><Key>p/c/data/old/vol</Key><LastModified>2026-11-21T14:00:00.000Z</LastModified><Size>1</Size></Contents>
<Contents><LastModified>2026-11-21T14:00:00.123Z</LastModified><Key>p/c/data/older/vol</Key></Contents>
<Contents><Key>p/c/data/new/vol</Key><LastModified>2026-11-21T14:00:00Z</LastModified></Contents>
</ListBucketResult>`

// What is said to be old is, in a listing and nowhere else.
func TestAntedate(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, listing) }))
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
	get := func(uri string) string {
		_, _, body, err := ask(t, l, "GET", uri, "")
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	const list = "/b?list-type=2&prefix=p"
	if got := get(list); got != listing {
		t.Errorf("the truth is\n%s", got)
	}
	l.antedate("p/c/data/old/", 24*time.Hour)
	l.antedate("p/c/data/older/", 48*time.Hour)
	want := strings.NewReplacer("2026-11-21T14:00:00.000Z", "2026-11-20T14:00:00.000Z", "2026-11-21T14:00:00.123Z", "2026-11-19T14:00:00.123Z", ">2026-11-21T14:00:00Z", ">2026-11-21T14:00:00.000Z").Replace(listing)
	if got := get(list); got != want {
		t.Errorf("antedated it is\n%s", got)
	}
	if got := get("/b/p/c/data/old/vol"); got != listing {
		t.Errorf("an object of that name has become\n%s", got)
	}
	l.antedate("", 0)
	if got := get(list); got != listing {
		t.Errorf("the truth again is\n%s", got)
	}
}

func TestKeysOf(t *testing.T) {
	body := `<Delete><Object><Key>a/b</Key></Object><Object><Key>c</Key></Object><Quiet>true</Quiet></Delete>`
	if got := keysOf([]byte(body)); !slices.Equal(got, []string{"a/b", "c"}) {
		t.Errorf("%q", got)
	}
}

// The past has to hold what each rule of retention is about.
func TestTheseDays(t *testing.T) {
	goes := 0
	for i, d := range theseDays {
		if d.goes {
			goes++
		}
		// Whatever had a newer one beside it for less than 72 hours stays.
		if grace := i == 0 || theseDays[i-1].age < 72*time.Hour; d.goes && (grace || d.extra != "") {
			t.Errorf("the one of %s must not go", d.age)
		}
	}
	if goes*3 != deletions {
		t.Errorf("%d go, by %d requests", goes, deletions)
	}
}
