package manifestcache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func FuzzDecodeManifest(f *testing.F) {
	for _, body := range []string{"", "\n", "{}", "{}\n{}", "\x00\xff", `{"mediaType":"x","size":1}`} {
		m := &Manifest{Descriptor: ocispec.Descriptor{MediaType: "text/plain; x=<\u2028>", Size: int64(len(body))}, Body: []byte(body)}
		f.Add(m.MediaType, encodeManifest(m))
		f.Add("", []byte(body))
	}
	f.Add("x", []byte(`{"mediaType":"x","size":-1}`+"\n"))
	f.Add("x", []byte(`{"mediaType":"x","size":2,"size":0}`+"\n"))
	f.Add("\xff", []byte("null\nnull"))
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		// As a file: whatever it holds, what comes out has the digest.
		_, rest, _ := bytes.Cut(data, []byte("\n"))
		for _, d := range []digest.Digest{digest.FromBytes(data), digest.FromBytes(rest), digest.SHA512.FromBytes(rest)} {
			m, err := decodeManifest(d, data)
			if err != nil {
				continue
			}
			if m.Digest != d || d.Algorithm().FromBytes(m.Body) != d || m.Size != int64(len(m.Body)) || m.MediaType == "" {
				t.Errorf("%q decodes as %s to %v", data, d, m)
			}
			if again, err := decodeManifest(d, encodeManifest(m)); err != nil || again.MediaType != m.MediaType || !bytes.Equal(again.Body, m.Body) {
				t.Errorf("%v does not survive encoding: %v, %v", m, again, err)
			}
		}
		// As a body: it comes back.
		if mediaType == "" || !utf8.ValidString(mediaType) {
			return
		}
		d := digest.FromBytes(data)
		m := &Manifest{Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, Body: data}
		got, err := decodeManifest(d, encodeManifest(m))
		if err != nil || got.MediaType != mediaType || !bytes.Equal(got.Body, data) || got.Size != m.Size || got.Digest != d {
			t.Errorf("%v comes back as %v, %v", m, got, err)
		}
	})
}

func FuzzDecodeTag(f *testing.F) {
	good, err := json.Marshal(link{Reference: "docker.io/library/alpine:latest", Descriptor: ocispec.Descriptor{Digest: digest.FromString("")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	for _, d := range []string{"", "latest", ":", "sha256:", "sha256:../../x", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha512:" + digest.FromString("").Encoded()} {
		f.Add(fmt.Appendf(nil, `{"descriptor":{"digest":%q}}`, d))
	}
	f.Add([]byte("null"))
	f.Add([]byte(`{"descriptor":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := decodeTag(data)
		if err != nil {
			return
		}
		name := manifestName(l.Descriptor.Digest)
		if d, ok := parseManifestName(name); !ok || d != l.Descriptor.Digest || !fs.ValidPath(name) {
			t.Errorf("%q leads to %q", data, name)
		}
	})
}

func FuzzBlobsOf(f *testing.F) {
	a, b := digest.FromString("a"), digest.SHA512.FromString("b")
	f.Add(fmt.Appendf(nil, `{"config":{"digest":%q},"layers":[{"digest":%q},{"digest":%[1]q}]}`, a, b))
	f.Add(fmt.Appendf(nil, `{"blobs":[{"digest":%q}],"fsLayers":[{"blobSum":%q}]}`, a, b))
	f.Add(fmt.Appendf(nil, `{"manifests":[{"digest":%q}],"subject":{"digest":%q}}`, a, b))
	f.Add([]byte(`{"layers":[null,{},{"digest":null},{"digest":"sha256:x"}],"config":null}`))
	f.Add([]byte(`{"layers":{}}`))
	f.Add(bytes.Repeat([]byte("["), 20_000))
	f.Fuzz(func(t *testing.T, data []byte) {
		list := namesOf(other, data).blobs // in any field
		for i, d := range list {
			if err := d.Validate(); err != nil {
				t.Errorf("%q: %v", d, err)
			}
			if slices.Contains(list[:i], d) {
				t.Errorf("%s is there twice", d)
			}
		}
	})
}

func FuzzDecodeList(f *testing.F) {
	for _, l := range []List{{}, {ContentType: "a/b\xff", Filters: "x\n", Next: "n=1&last=<b>", Body: []byte("\n{}\n")}} {
		f.Add("docker.io/a tags/list?n=1", encodeList("docker.io/a tags/list?n=1", &l))
	}
	f.Add("", []byte("{}\n"))
	f.Add("\xc5", []byte("\xb0")) // no letter each, but one together
	decode := func(key string, data []byte) (*List, error) {
		return decodeList(key, bytes.NewReader(data), int64(len(data)))
	}
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		l, err := decode(key, data)
		if err != nil {
			l = &List{ContentType: key, Next: string(data), Body: data}
		}
		again, err := decode(key, encodeList(key, l))
		if err != nil || !bytes.Equal(again.Body, l.Body) || utf8.ValidString(l.ContentType) && utf8.ValidString(l.Next) && (again.ContentType != l.ContentType || again.Next != l.Next) {
			t.Errorf("%+v became %+v, %v", *l, again, err)
		}
		if _, err := decode(key+"x", encodeList(key, l)); err == nil {
			t.Error("one list passes for another")
		}
	})
}

// useAndTrim is what becomes of the lists when a file is used.
func (s *lists) useAndTrim(file string, size int64, at time.Time) (added *listEntry, excess []*listEntry) {
	added = s.use(file, size, at)
	for other := s.excess(file); other != nil; other = s.excess(file) {
		excess = append(excess, s.forget(other.name))
	}
	return added, excess
}

// All lists together take a bounded part of the disk, empty ones too.
func TestAllListsAreBounded(t *testing.T) {
	for name, size := range map[string]int64{"large": 4 << 20, "odd": 4097, "small": 1} {
		t.Run(name, func(t *testing.T) {
			s, begin := newLists(), time.Now()
			var gone int
			add := func(i int) {
				_, excess := s.useAndTrim(fmt.Sprintf("lists/%d/x", i), size, begin.Add(time.Duration(i)))
				for _, file := range excess {
					if want := fmt.Sprintf("lists/%d/x", gone); file.name != want {
						t.Fatalf("%s has to go, want %s, the oldest", file.name, want)
					}
					gone++
				}
			}
			blocks := (size + listBlock - 1) / listBlock
			fit := int(maxListBytes / (blocks * listBlock))
			for i := range fit + 3 {
				add(i)
			}
			if n, bytes := s.stats(); n != int64(fit) || bytes != int64(fit)*blocks*listBlock || len(s.siblings) != fit || gone != 3 {
				t.Errorf("%d lists of %d bytes in %d repositories, %d gone; want %d, and 3", n, bytes, len(s.siblings), gone, fit)
			}
			s.useAndTrim(fmt.Sprintf("lists/%d/x", fit), maxListBytes+1, begin.Add(time.Hour)) // alone
			if n, _ := s.stats(); n != 1 {
				t.Errorf("%d lists beside one that is too large by itself", n-1)
			}
		})
	}
}

func TestListsOfARepositoryAreBounded(t *testing.T) {
	s, begin := newLists(), time.Now()
	s.useAndTrim("lists/other/x", 1, begin)
	for i := range maxLists + 3 {
		added, excess := s.useAndTrim(fmt.Sprintf("lists/a/%d", i), 1, begin.Add(time.Duration(i)))
		if want := max(0, i-maxLists+1); added == nil || len(excess) != min(want, 1) || want > 0 && excess[0].name != fmt.Sprintf("lists/a/%d", want-1) {
			t.Fatalf("list %d: new %v, and %v have to go", i, added, excess)
		}
	}
	if n, _ := s.stats(); n != maxLists+1 || s.siblings["lists/a"] != maxLists {
		t.Errorf("%d lists, %d of the repository", n, s.siblings["lists/a"])
	}
}
