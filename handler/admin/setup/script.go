package setup

import (
	_ "embed" // the script
	"fmt"
	"path/filepath"
	"strings"
)

// install is the part of the scripts that is the same in all of them.
//
//go:embed install.sh
var install string

// script installs the files of c. Nothing of it runs before all of it is there: its
// last line does everything.
func (t *target) script(c client) []byte {
	var s strings.Builder
	fmt.Fprintf(&s, "#!/bin/sh\n# Makes larder at %s the mirror of %s.\n", t.URL(), c.Name)
	source := "http://" + t.Admin + "/setup/" + c.Script
	if !t.Fallback {
		source += "?fallback=false"
	}
	for _, variable := range [][2]string{{"source", source}, {"dir", c.dir}, {"mark", mark}, {"client", strings.TrimSuffix(c.Script, ".sh")}} {
		fmt.Fprintf(&s, "%s=%s\n", variable[0], quote(variable[1]))
	}
	var names []string
	s.WriteString("\ncontent() {\n\tcase $1 in\n")
	for _, f := range c.Files {
		name, err := filepath.Rel(c.dir, f.Path)
		if err != nil || f.Name == "" {
			continue
		}
		names = append(names, name)
		fmt.Fprintf(&s, "\t%s) cat <<'END_OF_FILE' ;;\n%sEND_OF_FILE\n", quote(name), f.Content)
	}
	fmt.Fprintf(&s, "\tesac\n}\n\n# No name has a blank in it.\nnames=%s\n\n", quote(strings.Join(names, " ")))
	s.WriteString(install)
	return []byte(s.String())
}

// quote makes one word of s, for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
