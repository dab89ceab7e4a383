package main

import (
	_ "embed" // the README
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/term"
)

// readme has what is to be said of each variable: larder help says the same.
//
//go:embed README.md
var readme string

const (
	defaultWidth = 100 // of help that goes to no terminal
	leastWidth   = 40
)

// topic is a part of the configuration, as the README divides it.
type topic struct {
	name      string
	variables []variableHelp
}

// variableHelp is a row of the README's tables, without its markup.
type variableHelp struct {
	names           []string
	preset, meaning string
}

var (
	variablePattern = regexp.MustCompile(`LARDER_[A-Z_]+`)

	// cellPattern is what is between two bars.
	cellPattern = regexp.MustCompile(`(?:[^|\\]|\\.)+`)
	linkPattern = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// topics reads the README's tables of variables.
func topics(document string) []topic {
	var list []topic
	heading := ""
	for line := range strings.Lines(document) {
		line = strings.TrimSpace(line)
		if name := strings.TrimLeft(line, "#"); name != line {
			heading = strings.TrimSpace(name)
			continue
		}
		cells := cellPattern.FindAllString(line, -1)
		if !strings.HasPrefix(line, "| `LARDER_") || len(cells) < 3 {
			continue
		}
		if len(list) == 0 || list[len(list)-1].name != heading {
			list = append(list, topic{name: heading})
		}
		t := &list[len(list)-1]
		t.variables = append(t.variables, variableHelp{
			names:  variablePattern.FindAllString(cells[0], -1),
			preset: plain(cells[1]), meaning: plain(cells[2]),
		})
	}
	return list
}

// plain takes Markdown's marks off a cell.
func plain(cell string) string {
	cell = linkPattern.ReplaceAllString(strings.TrimSpace(cell), "$1")
	return strings.NewReplacer("`", "", `\|`, "|").Replace(cell)
}

// help explains the commands, and every variable with what it is set to.
func help(environ []string, stdout io.Writer) error {
	var s strings.Builder
	s.WriteString(usage)
	s.WriteString("\nThe variables, and what they are set to:\n")
	values := currentValues(environ)
	width := widthOf(stdout)
	for _, t := range topics(readme) {
		fmt.Fprintf(&s, "\n%s\n", strings.ToUpper(t.name))
		for _, v := range t.variables {
			fmt.Fprintf(&s, "\n%s\n", wrap(strings.Join(v.names, ", ")+"  (default: "+v.preset+")", width, "  "))
			fmt.Fprintf(&s, "%s\n", wrap(v.meaning, width, "      "))
			for _, name := range v.names {
				if value, ok := values[name]; ok {
					fmt.Fprintf(&s, "%s\n", wrap("now "+name+" is "+value, width, "    * "))
				}
			}
		}
	}
	_, err := io.WriteString(stdout, s.String())
	return err
}

// currentValues are those of the variables that are set. One that is a secret is not
// shown, nor one that is wrong: it may be a secret in the wrong place.
func currentValues(environ []string) map[string]string {
	var wrong []string
	if _, err := readConfig(environ); err != nil {
		wrong = variablePattern.FindAllString(err.Error(), -1)
	}
	values := make(map[string]string)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case !strings.HasPrefix(name, "LARDER_"):
		case value == "" && name != "LARDER_ADMIN_ADDR":
			delete(values, name) // as if it were not there
		case slices.Contains(wrong, name):
			values[name] = "wrong, and not shown: start larder to see why"
		case isSecret(name):
			values[name] = "set, and not shown"
		default:
			values[name] = printable(value)
		}
	}
	return values
}

// isSecret reports whether a variable holds a password.
func isSecret(name string) bool {
	for f := range reflect.TypeFor[config]().Fields() {
		if f.Tag.Get("env") == name {
			return f.Tag.Get("secret") != ""
		}
	}
	return false
}

// printable is a value that no terminal takes for a command.
func printable(value string) string {
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(value)
	}
	return value
}

// widthOf is that of a terminal, or what is good to read.
func widthOf(w io.Writer) int {
	if file, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return max(width, leastWidth)
		}
	}
	return defaultWidth
}

// wrap breaks text into lines, the first after indent and the others as far in.
func wrap(text string, width int, indent string) string {
	var s strings.Builder
	line := indent
	for i, word := range strings.Fields(text) {
		if i > 0 && len([]rune(line))+1+len([]rune(word)) > width {
			s.WriteString(line + "\n")
			line = strings.Repeat(" ", len(indent))
		} else if i > 0 {
			line += " "
		}
		line += word
	}
	s.WriteString(line)
	return s.String()
}

// commandPattern finds the names of commands in usage.
var commandPattern = regexp.MustCompile(`(?m)^  larder ([a-z]+)`)

// unknownCommand names those that there are.
func unknownCommand(name string) error {
	var names []string
	for _, match := range commandPattern.FindAllStringSubmatch(usage, -1) {
		names = append(names, match[1])
	}
	names = slices.Compact(names)
	return fmt.Errorf("%w: unknown command %q; there are %s", errUsage, name, strings.Join(names, ", "))
}
