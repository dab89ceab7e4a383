package middleware_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"larder/handler/middleware"
)

// newBusinessHours lets clients in from one hour of the day on. The operator says
// which, in LARDER_MIDDLEWARE_BUSINESSHOURS_FROM.
func newBusinessHours(opts middleware.Options) (middleware.Middleware, error) {
	from := opts.Settings.Int("FROM", 9, 0)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Opens", fmt.Sprint(from, " o'clock"))
			next.ServeHTTP(w, r)
		})
	}, nil
}

// A middleware of your own is compiled in with one call of Register, and then
// named in LARDER_MIDDLEWARE.
func ExampleRegistry_Register() {
	registry := middleware.Builtin()
	if err := registry.Register("businesshours", newBusinessHours); err != nil {
		fmt.Println(err)
	}

	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Println("served; opens at", w.Header().Get("X-Opens"))
	})
	opts := middleware.Options{Variables: map[string]string{"LARDER_MIDDLEWARE_BUSINESSHOURS_FROM": "7"}}
	chained, err := registry.Chain(h, opts, "recover", "businesshours", "readonly")
	if err != nil {
		fmt.Println(err)
	}
	chained.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v2/", nil))

	for _, err := range registry.Check(map[string]string{"LARDER_MIDDLEWARE_BUSINESSHOURS_TILL": "17"}, "businesshours") {
		fmt.Println(err)
	}
	// Output:
	// served; opens at 7 o'clock
	// LARDER_MIDDLEWARE_BUSINESSHOURS_TILL: no such option; there are LARDER_MIDDLEWARE_BUSINESSHOURS_FROM
}
