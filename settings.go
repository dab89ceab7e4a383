package main

import (
	"cmp"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"larder/handler/admin/pages"
	"larder/handler/middleware"
)

// masked is shown in the place of a secret.
const masked = "(set, not shown)"

// hostName is what LARDER_ADMIN_HOSTS lists.
var hostName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$`)

// shown is the configuration as it counts, for people to look at. What is or may be
// a secret is not in it.
func (c *config) shown() []pages.Setting {
	var list []pages.Setting
	for f := range reflect.TypeFor[config]().Fields() {
		name := f.Tag.Get("env")
		if name == "" {
			continue
		}
		value, given := c.given[name]
		if !given {
			value = f.Tag.Get("envDefault")
		}
		if f.Type.Kind() == reflect.String { // perhaps with a default that is not the same everywhere
			value = reflect.ValueOf(*c).FieldByIndex(f.Index).String()
		}
		if f.Tag.Get("secret") != "" && value != "" {
			value = masked
		}
		list = append(list, pages.Setting{Name: name, Value: value, Default: !given})
	}
	// Whoever has compiled in a middleware of his own knows what its options are.
	for name := range c.settings {
		s := pages.Setting{Name: name, Value: masked}
		if strings.HasPrefix(name, middleware.VariablePrefix+"LIMIT_") {
			s.Value = c.settings[name]
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b pages.Setting) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// adminHosts are the names by which the admin listener may be asked.
func (c *config) adminHosts() []string {
	host, _, _ := net.SplitHostPort(c.AdminAddr) // it was checked
	return append([]string{host}, c.AdminHosts...)
}
