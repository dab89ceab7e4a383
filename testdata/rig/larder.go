package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// BuildLarder builds the larder of this module.
func BuildLarder(ctx context.Context, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", to, "larder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build larder: %w: %s", err, said)
	}
	return nil
}

// CommandLarder runs larder with these variables, and none of LARDER_ that are set here.
func CommandLarder(program string, environ ...string) *exec.Cmd {
	cmd := exec.Command(program)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LARDER_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, environ...)
	return cmd
}
