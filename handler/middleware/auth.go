package middleware

import (
	"context"
	"errors"
	"net/http"

	"larder/handler/errcode"
)

// newAuth asks clients who they are: with Options.Tokens for a token, else for a
// name and a password, if Options.Verify is there to check them. It covers /v2/
// too, which is how clients find out. A client with a certificate has the name in
// that until then.
func newAuth(opts Options) (Middleware, error) {
	if opts.Tokens != nil && (opts.Identify == nil || opts.MayPull == nil) {
		return nil, errors.New("nobody says what a token has to be good for")
	}
	return func(next http.Handler) http.Handler {
		var asked http.Handler
		switch {
		case opts.Tokens != nil:
			asked = &tokenAuth{Tokens: *opts.Tokens, verify: opts.Verify, mayPull: opts.MayPull, next: next}
		case opts.Verify != nil:
			asked = basicAuth(opts.Verify, next)
		default:
			asked = next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
				NoteOf(r.Context()).User = r.TLS.PeerCertificates[0].Subject.CommonName
			}
			asked.ServeHTTP(w, r)
		})
	}, nil
}

// verifyFunc is Options.Verify.
type verifyFunc = func(ctx context.Context, username, password string) (ok bool, err error)

// basicAuth is RFC 7617.
func basicAuth(verify verifyFunc, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, refusal := signIn(r, verify); refusal != nil {
			errcode.Write(w, r, refusal)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// signIn returns the user whose password r shows, and notes who it is; else the
// answer for who shows none, or a wrong one.
func signIn(r *http.Request, verify verifyFunc) (user string, refusal *errcode.Error) {
	username, password, ok := r.BasicAuth()
	if ok = ok && verify != nil; ok {
		var err error
		if ok, err = verify(r.Context(), username, password); err != nil {
			NoteOf(r.Context()).Err = err
			return "", unverified(r)
		}
	}
	if !ok {
		return "", &errcode.Error{
			Status: http.StatusUnauthorized, Code: errcode.Unauthorized, Message: "larder needs a username and a password",
			Header: http.Header{"Www-Authenticate": {`Basic realm="larder", charset="UTF-8"`}},
		}
	}
	NoteOf(r.Context()).User = username
	return username, nil
}

// unverified is for a client whose password can't be checked now.
func unverified(r *http.Request) *errcode.Error {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // it left
	}
	return &errcode.Error{
		Status: http.StatusTooManyRequests, Code: errcode.TooManyRequests, Message: "larder is busy checking passwords",
		Header: http.Header{"Retry-After": {"1"}},
	}
}
