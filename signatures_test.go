package main

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

const (
	cosignPayload  = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	cosignBundle   = types.MediaType("application/vnd.dev.sigstore.bundle.v0.3+json")
	notarySignType = types.MediaType("application/vnd.cncf.notary.signature")
)

// signature is an image as cosign and notation make them: of one layer that signs
// a subject, which it names if it is one of a referrer.
func signature(t *testing.T, content string, layer, config types.MediaType, subject *v1.Descriptor) v1.Image {
	t.Helper()
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config), mutate.Addendum{
		Layer:       static.NewLayer([]byte(content), layer),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": "MEUCIQ=="},
	})
	if err != nil {
		t.Fatal(err)
	}
	if subject != nil {
		img = mutate.Subject(img, *subject).(v1.Image)
	}
	return img
}

// publish puts what ggcr has made where larder's upstream has it.
func publish(t *testing.T, reg *upstreamtest.Registry, repository, tag string, what partial.WithRawManifest) v1.Descriptor {
	t.Helper()
	if img, ok := what.(v1.Image); ok {
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			rc, err := l.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			if err != nil {
				t.Fatal(err)
			}
			reg.AddBlob(repository, data)
		}
		config, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		reg.AddBlob(repository, config)
	}
	body, err := what.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mediaType, err := what.(interface {
		MediaType() (types.MediaType, error)
	}).MediaType()
	if err != nil {
		t.Fatal(err)
	}
	reg.AddManifest(repository, tag, string(mediaType), body)
	desc, err := partial.Descriptor(what.(partial.Describable))
	if err != nil {
		t.Fatal(err)
	}
	return *desc
}

// verifier asks larder with go-containerregistry, as cosign does.
type verifier struct {
	t       *testing.T
	repo    name.Repository
	subject v1.Descriptor
	suffix  string // of the subject's tags
}

func newVerifier(t *testing.T, l *larder, repository string, subject v1.Descriptor) *verifier {
	t.Helper()
	repo, err := name.NewRepository(l.addr+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return &verifier{t: t, repo: repo, subject: subject, suffix: strings.Replace(subject.Digest.String(), ":", "-", 1)}
}

// content is what the only layer of an image holds: its digest was checked.
func (v *verifier) content(ref name.Reference) (string, error) {
	img, err := remote.Image(ref, remote.WithContext(v.t.Context()), remote.WithRetryStatusCodes())
	if err != nil {
		return "", err
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		v.t.Fatalf("%s: %d layers, %v", ref, len(layers), err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		return "", err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return string(data), err
}

// referrers are the contents of those of an artifact type ("": of all), sorted.
func (v *verifier) referrers(artifactType types.MediaType) ([]string, error) {
	opts := []remote.Option{remote.WithContext(v.t.Context()), remote.WithRetryStatusCodes()}
	if artifactType != "" {
		opts = append(opts, remote.WithFilter("artifactType", string(artifactType)))
	}
	index, err := remote.Referrers(v.repo.Digest(v.subject.Digest.String()), opts...)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	contents := []string{}
	for _, m := range manifest.Manifests {
		content, err := v.content(v.repo.Digest(m.Digest.String()))
		if err != nil {
			return nil, err
		}
		contents = append(contents, content)
	}
	slices.Sort(contents)
	return contents, nil
}

func (v *verifier) wantTag(suffix, want string) {
	v.t.Helper()
	if got, err := v.content(v.repo.Tag(v.suffix + suffix)); got != want || err != nil {
		v.t.Errorf("%s: got %q, %v, want %q", suffix, got, err, want)
	}
}

func (v *verifier) wantReferrers(artifactType types.MediaType, want ...string) {
	v.t.Helper()
	if got, err := v.referrers(artifactType); !slices.Equal(got, want) || err != nil {
		v.t.Errorf("referrers of type %q: got %q, %v, want %q", artifactType, got, err, want)
	}
}

// Images are verified through larder as from the registry itself, also when that
// is gone: by tags and referrers (cosign), by referrers alone (notation), and by the
// fallback tag where there are no referrers.
func TestSignaturesAreVerified(t *testing.T) {
	t.Parallel()
	const repository = "team/app"
	for _, api := range []string{"with referrers", "with fallback tag"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			reg := upstreamtest.New(t)
			subject := publish(t, reg, repository, "1", ociImage(flatImage(t, 1000)))
			tag := strings.Replace(subject.Digest.String(), ":", "-", 1)
			for suffix, content := range map[string]string{".sig": "a signature", ".att": "an attestation", ".sbom": "an SBOM"} {
				publish(t, reg, repository, tag+suffix, signature(t, content, cosignPayload, types.OCIConfigJSON, nil))
			}
			notation := signature(t, "a notary signature", "application/jose+json", notarySignType, &subject)
			bundle := signature(t, "a bundle", cosignBundle, cosignBundle, &subject)
			index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
			for _, img := range []v1.Image{notation, bundle} {
				desc := publish(t, reg, repository, "", img)
				m, err := img.Manifest()
				if err != nil {
					t.Fatal(err)
				}
				desc.ArtifactType = string(m.Config.MediaType)
				index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: desc})
			}
			if api == "with referrers" {
				reg.EnableReferrers()
			} else {
				publish(t, reg, repository, tag, index)
			}
			l := startFaulty(t, []string{"LARDER_LIST_TTL=0s"}, reg)
			unsigned := newVerifier(t, l, repository, publish(t, reg, repository, "2", ociImage(flatImage(t, 100))))
			for _, phase := range []string{"cold", "warm", "upstream gone", "after a restart"} {
				switch phase {
				case "upstream gone":
					unsigned.wantReferrers("")
					reg.Stop()
				case "after a restart":
					l.stop(t)
					l = startFaulty(t, []string{"LARDER_LIST_TTL=0s", "LARDER_CACHE_DIR=" + l.cache}, reg)
				}
				t.Run(phase, func(t *testing.T) {
					v := newVerifier(t, l, repository, subject)
					v.wantTag(".sig", "a signature")
					v.wantTag(".att", "an attestation")
					v.wantTag(".sbom", "an SBOM")
					v.wantReferrers(notarySignType, "a notary signature")
					v.wantReferrers(cosignBundle, "a bundle")
					v.wantReferrers("", "a bundle", "a notary signature")
				})
			}
			// That nobody has signed this image, nobody can say now.
			unknown := newVerifier(t, l, repository, v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}})
			got, err := unknown.referrers("")
			if e, ok := errors.AsType[*transport.Error](err); !ok || e.StatusCode != http.StatusBadGateway {
				t.Errorf("got %q, %v of what is not known, want a 502", got, err)
			}
		})
	}
}

// skopeo asks for signatures if it is told that there are any, and takes all but a
// list of them for an error.
func TestSkopeoGetsSignaturesOfTheExtension(t *testing.T) {
	t.Parallel()
	requireProgram(t, "skopeo")
	const repository = "team/app"
	reg := upstreamtest.New(t)
	signed := publish(t, reg, repository, "signed", ociImage(flatImage(t, 1000)))
	publish(t, reg, repository, "unsigned", ociImage(flatImage(t, 100)))
	reg.AddSignature(repository, digest.Digest(signed.Digest.String()), []byte("a simple signature"))
	reg.EnableSignatures()
	l := startFaulty(t, nil, reg)
	l.want(t, "/v2/"+repository+"/tags/list", http.StatusOK, nil) // which is how larder learns of them
	for _, phase := range []string{"cold", "upstream gone"} {
		if phase == "upstream gone" {
			reg.Stop()
		}
		for tag, want := range map[string]string{"signed": "a simple signature", "unsigned": ""} {
			dir := t.TempDir()
			if _, err := runCommand(t, nil, "skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "docker://"+l.addr+"/"+repository+":"+tag, "dir:"+dir); err != nil {
				t.Errorf("%s, %s: %v", tag, phase, err)
				continue
			}
			got, err := os.ReadFile(filepath.Join(dir, "signature-1"))
			if string(got) != want || (err == nil) != (want != "") {
				t.Errorf("%s, %s: got signature %q, %v, want %q", tag, phase, got, err, want)
			}
		}
	}
}
