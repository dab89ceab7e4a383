package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// fileLimit in the environment of a larder that is the test binary is how many
// files it may have open.
const fileLimit = "TEST_FILE_LIMIT"

// limitFiles bounds what this process may have open.
func limitFiles(limit string) {
	n, err := strconv.ParseUint(limit, 10, 32)
	if limit == "" {
		return
	}
	if err == nil {
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}
