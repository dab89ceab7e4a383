// Larder is a pull-through cache for container images. It runs beside
// containerd, docker, podman or BuildKit, answers their pulls on localhost:5000,
// and fetches from the registries it is told of what it does not have.
//
//	larder           run, configured by LARDER_* environment variables
//	larder demo      show a cold pull, a warm one, and one without the upstream
//	larder doctor    find out what does not work, and what to do about it
//	larder health    ask a running larder whether it is well; for health checks
//	larder warm REF  have a running larder fetch images before they are pulled
//	larder version   print the version
//	larder help      explain the commands and the variables
//
// The README has the tables of variables. Exit status: 0 after a clean stop, 1
// on an error, 2 if the configuration or the command line is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

const usage = `larder is a pull-through cache for container images.

  larder           run, configured by LARDER_* environment variables
  larder demo      show a cold pull, a warm one, and one without the upstream
  larder doctor    find out what does not work, and what to do about it
  larder health    ask a running larder whether it is well; for health checks
  larder warm REF  have a running larder fetch images before they are pulled;
                   -platform linux/amd64,linux/arm64 or all, -detach to leave it alone
  larder version   print the version
  larder help      explain the commands and the variables
`

// errUsage says that the command line is wrong.
var errUsage = errors.New("wrong command line")

func main() {
	tuneCollector()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "larder:", err)
		os.Exit(exitStatus(err))
	}
}

// command runs what the command line asks for.
func command(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return run(ctx, environ, stdout, stderr)
	}
	if args[0] == "help" || slices.Contains([]string{"-h", "-help", "--help"}, args[len(args)-1]) {
		return help(environ, stdout)
	}
	if args[0] == "warm" {
		return warmCommand(ctx, args[1:], environ, stdout)
	}
	if len(args) > 1 {
		return unknownCommand(strings.Join(args, " "))
	}
	switch args[0] {
	case "demo":
		return demo(ctx, stdout, stderr)
	case "doctor":
		return examineAll(ctx, environ, stdout, stderr)
	case "health":
		return health(ctx, environ)
	case "version", "-version", "--version":
		_, err := fmt.Fprintln(stdout, "larder", version())
		return err
	default:
		return unknownCommand(args[0])
	}
}

func exitStatus(err error) int {
	if _, ok := errors.AsType[*configError](err); ok || errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

// version is what the Go toolchain has noted about the build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v += " " + s.Value
		}
	}
	return v
}
