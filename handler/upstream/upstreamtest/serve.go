package upstreamtest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// SetAcceptStrict makes the registry serve a manifest only to those whose Accept has its type.
func (r *Registry) SetAcceptStrict() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.strict = true
}

// answer is what a healthy registry does.
func (r *Registry) answer(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, req, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read only")
		return
	}
	if req.URL.Path == tokenPath {
		r.serveToken(w, req)
		return
	}
	name, kind, last := split(req.URL.Path)
	if kind == "ping" {
		r.announce(w.Header())
	}
	if !r.authorize(w, req, name) {
		return
	}
	switch kind {
	case "ping":
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		writeJSON(w, req, http.StatusOK, "application/json", struct{}{})
	case "manifests":
		r.serveManifest(w, req, name, last)
	case "blobs":
		r.serveBlob(w, req, name, digest.Digest(last))
	case "referrers":
		r.serveReferrers(w, req, name, digest.Digest(last))
	case "tags":
		r.serveTags(w, req, name)
	case "signatures":
		r.serveSignatures(w, req, name, digest.Digest(last))
	default:
		writeError(w, req, http.StatusNotFound, "NAME_UNKNOWN", "no such page")
	}
}

// split takes a path apart from the right, because names have slashes.
func split(path string) (name, kind, last string) {
	if path == "/v2" || path == "/v2/" {
		return "", "ping", ""
	}
	path, extension := strings.CutPrefix(path, "/extensions")
	parts := strings.Split(path, "/")
	n := len(parts)
	if n < 5 || parts[0] != "" || parts[1] != "v2" {
		return "", "", ""
	}
	name, kind, last = strings.Join(parts[2:n-2], "/"), parts[n-2], parts[n-1]
	if kind == "tags" && last != "list" || extension != (kind == "signatures") {
		return name, "", last
	}
	return name, kind, last
}

// look calls do with the repository of this name and mu held, or answers that there is none.
func (r *Registry) look(w http.ResponseWriter, req *http.Request, name string, do func(*contents)) bool {
	r.mu.Lock()
	repo, ok := r.repositories[name]
	if ok {
		do(repo)
	}
	r.mu.Unlock()
	if !ok {
		writeError(w, req, http.StatusNotFound, "NAME_UNKNOWN", "no repository "+name)
	}
	return ok
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, name, reference string) {
	var m manifest
	var found bool
	d := digest.Digest(reference)
	ok := r.look(w, req, name, func(repo *contents) {
		d = cmp.Or(repo.tags[reference], d)
		m, found = repo.manifests[d]
		found = found && (!r.strict || accepts(req.Header, m.mediaType))
	})
	if !ok {
		return
	}
	if !found {
		writeError(w, req, http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest "+reference)
		return
	}
	serveContent(w, req, d, m.mediaType, bytes.NewReader(m.body))
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, name string, d digest.Digest) {
	if err := d.Validate(); err != nil {
		writeError(w, req, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	var b blob
	var found bool
	if !r.look(w, req, name, func(repo *contents) { b, found = repo.blobs[d] }) {
		return
	}
	if !found {
		writeError(w, req, http.StatusNotFound, "BLOB_UNKNOWN", "no blob "+d.String())
		return
	}
	serveContent(w, req, d, "application/octet-stream", io.NewSectionReader(b.content, 0, b.size))
}

func serveContent(w http.ResponseWriter, req *http.Request, d digest.Digest, mediaType string, content io.ReadSeeker) {
	h := w.Header()
	h["Content-Type"] = []string{mediaType} // exactly; an empty one is not guessed
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(w, req, "", time.Time{}, content)
}

// accepts says whether the Accept in h has room for mediaType; none at all is room for all.
func accepts(h http.Header, mediaType string) bool {
	values := h.Values("Accept")
	if len(values) == 0 {
		return true
	}
	for accepted := range strings.SplitSeq(strings.Join(values, ","), ",") {
		t, _, err := mime.ParseMediaType(accepted)
		if err == nil && (t == "*/*" || t == mediaType || t == "application/*" && strings.HasPrefix(mediaType, "application/")) {
			return true
		}
	}
	return false
}

func writeJSON(w http.ResponseWriter, req *http.Request, status int, mediaType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		w.Write(body)
	}
}

func writeError(w http.ResponseWriter, req *http.Request, status int, code, message string) {
	type detail struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	writeJSON(w, req, status, "application/json", struct {
		Errors []detail `json:"errors"`
	}{[]detail{{code, message}}})
}

// errorCode is a code of the specification that goes with a status.
func errorCode(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusNotFound:
		return "NAME_UNKNOWN"
	case http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	default:
		return "UNKNOWN"
	}
}
