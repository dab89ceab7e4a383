package pages

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// maxForm bounds the forms that are read.
const maxForm = 64 << 10

// Search is which images are wanted.
type Search struct {
	Text string // in repository:tag; "": all
	Sort string // name, size, used
	Last string // the Next of Images, for those that follow
}

// Images is some of them.
type Images struct {
	Images []Image
	Next   string // "": there are no more
}

// Image is an image, or an index of images, in a repository.
type Image struct {
	Repository string
	Digest     digest.Digest
	Platforms  []string // of an index: those that are here
	Tags       []Tag
	MoreTags   int // that are not in Tags

	Size    int64 // of all that is here
	Shared  int64 // of that, what other images need too
	Blobs   int
	Missing []Missing // the first of MissingCount
	MissingCount,
	ManifestCount int
	Complete bool // it can be served offline

	Used    time.Time
	Expires *time.Time // nil: never
	Hits    int64
	Listed  bool // its registry is one of LARDER_UPSTREAMS, and can be asked
	Pin     Pin
}

// Own is what of the size no other image needs.
func (i Image) Own() int64 { return i.Size - i.Shared }

// Reference is the image by its digest.
func (i Image) Reference() string { return i.Repository + "@" + i.Digest.String() }

// Tag is a tag of an image.
type Tag struct {
	Name      string
	Reference string
	Validated time.Time
	Moves     []Move // the newest first
	Pin       Pin
}

// Pin is whether a tag, or an image by its digest, is pinned.
type Pin struct {
	ByHand    bool
	BySetting bool // LARDER_PIN says so, and no button can change that
}

// Move is that a tag was seen to point at something else than before.
type Move struct {
	At       time.Time
	From, To digest.Digest
}

// Missing is a blob of which not all is here.
type Missing struct {
	Digest  digest.Digest
	Have    int64
	Filling bool
}

// imagesPage is what the template of the images page is given.
type imagesPage struct {
	*Images
	Search
	Token  string
	CanPin bool
	Notice *notice
	Error  string
}

func (p *Handler) images(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	data := imagesPage{
		Search: Search{query.Get("q"), cmp.Or(query.Get("sort"), "name"), query.Get("last")},
		Token:  p.cfg.Token, CanPin: p.cfg.Pin != nil, Notice: p.notices.get(query.Get("said")), Images: new(Images),
	}
	status := http.StatusOK
	found, err := p.cfg.Images(r.Context(), data.Search)
	if err != nil {
		data.Error, status = err.Error(), http.StatusBadRequest
	} else {
		data.Images = found
	}
	p.show(w, r, status, "images.html", data)
}

// Address is where the page with another search is.
func (i imagesPage) Address(sort, last string) string {
	query := url.Values{}
	for name, value := range map[string]string{"q": i.Text, "sort": sort, "last": last} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return "/images?" + query.Encode()
}

// button is what the template of a button is given.
type button struct {
	Page                    imagesPage
	Action, Reference, Word string
}

func newButton(page imagesPage, action, reference, word string) button {
	return button{page, action, reference, word}
}

// Word is what the button for it says.
func (p Pin) Word() string {
	if p.ByHand {
		return "Unpin"
	}
	return "Pin"
}

// act has a button do what it says, and leads back to the page.
func (p *Handler) act(do func(r *http.Request, reference string) (said string, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		if !HasToken(w, r, p.cfg.Token) {
			http.Error(w, "this form is not from a page of larder's, or it is from before it was started: reload the page", http.StatusForbidden)
			return
		}
		said, err := do(r, r.PostFormValue("reference"))
		n := notice{Text: said}
		if err != nil {
			n = notice{Text: err.Error(), Failed: true}
		}
		query := url.Values{"said": {p.notices.add(n)}}
		for _, name := range []string{"q", "sort", "last"} {
			if value := r.PostFormValue(name); value != "" {
				query.Set(name, value)
			}
		}
		http.Redirect(w, r, "/images?"+query.Encode(), http.StatusSeeOther)
	}
}

// HasToken reports whether r has the token that pages have. It may read r's form, if
// that is not large.
func HasToken(w http.ResponseWriter, r *http.Request, token string) bool {
	got := r.Header.Get(TokenHeader)
	if got == "" {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		got = r.PostFormValue(TokenField)
	}
	return token != "" && subtle.ConstantTimeCompare([]byte(got), []byte(token)) == 1
}

func (p *Handler) delete(r *http.Request, reference string) (said string, err error) {
	return p.cfg.Delete(r, reference)
}

func (p *Handler) refresh(r *http.Request, reference string) (said string, err error) {
	return p.cfg.Refresh(r, reference)
}

func (p *Handler) pin(r *http.Request, reference string) (said string, err error) {
	pinned := r.PostFormValue("pinned") == "true"
	if err := p.cfg.Pin(r.Context(), reference, pinned); err != nil {
		return "", err
	}
	if pinned {
		return reference + " is pinned.", nil
	}
	return reference + " is not pinned any more.", nil
}

// notice is what came of a button.
type notice struct {
	id     string
	Text   string
	Failed bool
}

// maxNotices bounds how many are kept for the pages that are about to ask.
const maxNotices = 64

// notices are the last ones. They are not in an address: whoever makes up that
// could have larder say anything.
type notices struct {
	mu   sync.Mutex // guards list
	list []notice
}

func (n *notices) add(one notice) (id string) {
	one.id = rand.Text()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, one)
	n.list = n.list[max(len(n.list)-maxNotices, 0):]
	return one.id
}

func (n *notices) get(id string) *notice {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.IndexFunc(n.list, func(one notice) bool { return one.id == id }); i >= 0 {
		return &notice{Text: n.list[i].Text, Failed: n.list[i].Failed}
	}
	return nil
}
