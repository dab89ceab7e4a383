package manifestcache

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A field counts only where the media type has it: that is what registries check.
func TestChildrenOfEveryKindOfManifest(t *testing.T) {
	digests := make([]digest.Digest, 6)
	for i := range digests {
		digests[i] = digest.SHA512.FromString(fmt.Sprint(i))
	}
	config, layer, blob, fsLayer, listed := digests[0], digests[1], digests[2], digests[3], digests[4]
	body := fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"digest":%q},{"digest":%[2]q}],"blobs":[{"digest":%q}],
		"fsLayers":[{"blobSum":%q},{"blobSum":%[4]q}],"manifests":[{"digest":%q}],"subject":{"digest":%q}}`,
		config, layer, blob, fsLayer, listed, digests[5])
	tests := map[string]names{
		ocispec.MediaTypeImageManifest: {blobs: []digest.Digest{layer, config}},
		typeDockerManifest:             {blobs: []digest.Digest{layer, config}},
		ocispec.MediaTypeImageIndex:    {manifests: []digest.Digest{listed}},
		typeDockerList:                 {manifests: []digest.Digest{listed}},
		typeArtifact:                   {blobs: []digest.Digest{blob}},
		typeORASArtifact:               {blobs: []digest.Digest{blob}},
		typeSchema1:                    {blobs: []digest.Digest{fsLayer}},
		typeSchema1Signed:              {blobs: []digest.Digest{fsLayer}},
		"application/x.new+json":       {blobs: []digest.Digest{layer, config, blob, fsLayer}, manifests: []digest.Digest{listed}},
	}
	for mediaType, want := range tests {
		got := namesOf(kindOf(mediaType), []byte(body))
		if !slices.Equal(got.blobs, want.blobs) || !slices.Equal(got.manifests, want.manifests) {
			t.Errorf("%s: got %+v, want %+v", mediaType, got, want)
		}
	}
	bad := fmt.Sprintf(`{"layers":[{"digest":"latest"},null,{"digest":%q}]}`, layer)
	if got := namesOf(image, []byte(bad)).blobs; !slices.Equal(got, []digest.Digest{layer}) {
		t.Errorf("got %v of bad ones, want the good one", got)
	}
	elsewhere := fmt.Sprintf(`{"layers":[{"digest":%q,"urls":["https://example.com/"]},{"digest":%q}]}`, blob, layer)
	if got := namesOf(image, []byte(elsewhere)).blobs; !slices.Equal(got, []digest.Digest{layer}) {
		t.Errorf("got %v, want the layer that is not kept elsewhere", got)
	}
	large := fmt.Sprintf(`{"layers":[{"digest":%q}],"x":"%*d"}`, layer, maxBody, 1)
	for _, nothing := range []string{"", "x", "[]", "{}", large} {
		if got := namesOf(image, []byte(nothing)); len(got.blobs)+len(got.manifests) != 0 {
			t.Errorf("%.100q names %v", nothing, got)
		}
	}
}

// sign adds signatures to a document as Docker's libtrust does, one for each
// tail that it is said to have had.
func sign(payload string, tails ...string) string {
	end := strings.LastIndexByte(payload, '}')
	length := len(strings.TrimRight(payload[:end], " \n"))
	var signatures []string
	for _, tail := range tails {
		protected := fmt.Sprintf(`{"formatLength":%d,"formatTail":%q,"time":"2015-06-01T00:00:00Z"}`, length, base64.RawURLEncoding.EncodeToString([]byte(tail)))
		signatures = append(signatures, fmt.Sprintf(`{"header":{"alg":"ES256"},"signature":"s","protected":%q}`, base64.RawURLEncoding.EncodeToString([]byte(protected))))
	}
	return payload[:length] + ",\n   \"signatures\": [" + strings.Join(signatures, ",") + "]" + payload[length:]
}

func TestDigestOfSignedManifest(t *testing.T) {
	const payload = "{\n   \"schemaVersion\": 1,\n   \"fsLayers\": []\n}"
	good := sign(payload, "\n}")
	tests := map[string]struct {
		mediaType, body string
		want            bool
	}{
		"signed":              {typeSchema1Signed, good, true},
		"signed twice":        {typeSchema1Signed, sign(payload, "\n}", "\n}"), true},
		"not signed":          {typeSchema1Signed, payload, true},
		"another type":        {ocispec.MediaTypeImageManifest, good, false},
		"two minds":           {typeSchema1Signed, sign(payload, "\n}", "\n\n}"), false},
		"another tail":        {typeSchema1Signed, sign(payload, " }"), false},
		"another payload":     {typeSchema1Signed, strings.Replace(good, "[]", "[{}]", 1), false},
		"more after the sign": {typeSchema1Signed, strings.Replace(good, "]\n}", "],\"fsLayers\":[{\"blobSum\":\"x\"}]\n}", 1), false},
		"more before it":      {typeSchema1Signed, strings.Replace(good, `"signatures"`, `"history":[],"signatures"`, 1), false},
		"signatures of none":  {typeSchema1Signed, strings.Replace(payload, "[]", `[],"signatures":[]`, 1), false},
		"not a signature":     {typeSchema1Signed, strings.Replace(good, `"protected":"`, `"protected":"!`, 1), false},
		"longer than it is":   {typeSchema1Signed, strings.ReplaceAll(good, protectedOf(good), base64.RawURLEncoding.EncodeToString([]byte(`{"formatLength":100000,"formatTail":""}`))), false},
		"of no length":        {typeSchema1Signed, strings.ReplaceAll(good, protectedOf(good), base64.RawURLEncoding.EncodeToString([]byte(`{"formatLength":-1,"formatTail":""}`))), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := digest.FromString(payload)
			if got := has(d, test.mediaType, []byte(test.body)); got != test.want {
				t.Errorf("has the digest: %v, want %v:\n%s", got, test.want, test.body)
			}
			if got := canonicalDigest(test.mediaType, []byte(test.body)) == d; got != test.want {
				t.Errorf("is named so by itself: %v, want %v", got, test.want)
			}
		})
	}
}

// Whoever makes a manifest says how many signatures it has.
func TestManySignaturesAreOneDocument(t *testing.T) {
	payload := "{\n   \"name\": \"" + strings.Repeat("x", 200<<10) + "\"\n}"
	body := []byte(sign(payload, slices.Repeat([]string{"\n}"}, 300)...))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ok := has(digest.FromString(payload), typeSchema1Signed, body)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; !ok || took > 10*uint64(len(body)) {
		t.Errorf("has the digest: %v, with %d bytes of memory for %d", ok, took, len(body))
	}
}

func protectedOf(signed string) string {
	_, after, _ := strings.Cut(signed, `"protected":"`)
	protected, _, _ := strings.Cut(after, `"`)
	return protected
}

func FuzzSignedPart(f *testing.F) {
	f.Add([]byte(sign("{\n \"a\": 1\n}", "\n}")))
	f.Add([]byte(sign("{ \"a\": 1 }", " }", " }")))
	f.Add([]byte(`{"signatures":[{"protected":""}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		signed, ok := signedPart(typeSchema1Signed, body)
		if !ok {
			return
		}
		// Without its signatures, the body says what was signed.
		if a, b := fmt.Sprint(namesOf(schema1, signed)), fmt.Sprint(namesOf(schema1, body)); a != b {
			t.Errorf("%q names %s, and what was signed of it %s", body, b, a)
		}
	})
}
