package manifestcache

import (
	"crypto/rand"
	"crypto/sha256"
	"maps"
	"time"
)

const (
	// maxProven bounds how many blobs are remembered that upstream has said that a
	// repository has: what is not, or not yet, named by a manifest. They take 30 MB
	// at most. Forgetting one costs a HEAD.
	maxProven = 500_000

	// maxRefused bounds how many are remembered that it has not. None of these is
	// ever forgotten for another: see Forget.
	maxRefused = 100_000
)

// pair stands for a repository and a blob: 4 bytes of a hash of the repository, to
// tell which are its own, and 12 of one of both, under a key that is the process's
// own and never leaves it. Nobody can look for two that are the same; by chance,
// one of maxProven is taken for another once in 2^77 questions.
type pair [16]byte

// proofs remembers what upstream has said of single blobs in repositories.
type proofs struct {
	key [16]byte // immutable

	proven    map[pair]proof
	maxProven int

	refused    map[pair]struct{} // whatever its manifests name
	maxRefused int
}

// proof says when upstream said yes, and when that was last of use: in seconds
// since 1970, rounded down.
type proof struct{ at, used uint32 }

func newProofs() proofs {
	p := proofs{proven: make(map[pair]proof), maxProven: maxProven, refused: make(map[pair]struct{}), maxRefused: maxRefused}
	_, _ = rand.Read(p.key[:]) // never fails
	return p
}

// pair needs no lock.
func (p *proofs) pair(r right) (k pair) {
	var buf [16 + sha256.Size + len("sha512:") + 2*64]byte
	of := append(append(buf[:0], p.key[:]...), r.repository[:]...)
	repository := sha256.Sum256(of)
	both := sha256.Sum256(append(of, r.digest...))
	copy(k[:4], repository[:])
	copy(k[4:], both[:])
	return k
}

// forgetRepositories forgets what was proven of repositories. What they have been
// refused stays.
func (p *proofs) forgetRepositories(hashes [][sha256.Size]byte) {
	own := make(map[[4]byte]bool, len(hashes))
	for _, hash := range hashes {
		k := p.pair(right{repository: hash})
		own[[4]byte(k[:4])] = true
	}
	maps.DeleteFunc(p.proven, func(k pair, _ proof) bool { return own[[4]byte(k[:4])] })
}

// prove remembers a yes, which others may be forgotten for: of a few that chance
// picks, the least recently used.
func (p *proofs) prove(k pair) {
	if _, ok := p.proven[k]; !ok && len(p.proven) >= p.maxProven {
		var oldest pair
		looked := 0
		for k, v := range p.proven { // begins anywhere
			if looked == 0 || v.used < p.proven[oldest].used {
				oldest = k
			}
			if looked++; looked == sample {
				break
			}
		}
		delete(p.proven, oldest)
	}
	now := uint32(time.Now().Unix())
	p.proven[k] = proof{now, now}
	delete(p.refused, k)
}

// refuse remembers a no, and reports false if there is no room for it.
func (p *proofs) refuse(k pair) bool {
	delete(p.proven, k)
	if _, ok := p.refused[k]; !ok && len(p.refused) >= p.maxRefused {
		return false
	}
	p.refused[k] = struct{}{}
	return true
}

// proof says when upstream said yes, and notes the use.
func (p *proofs) proof(k pair) (at time.Time, ok bool) {
	v, ok := p.proven[k]
	if !ok {
		return at, false
	}
	if now := uint32(time.Now().Unix()); now != v.used {
		v.used = now
		p.proven[k] = v
	}
	return time.Unix(int64(v.at), 0), true
}
