package rig

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine is where the benchmark ran.
type Machine struct {
	CPU    string
	Cores  int
	Kernel string
	Go     string
}

// ThisMachine asks the machine.
func ThisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(cpu), "model name")
	line, _, _ := strings.Cut(rest, "\n")
	m.CPU = strings.TrimSpace(strings.TrimLeft(line, "\t :"))
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	return m
}

// Digits is a number with three digits that matter.
func Digits(f float64) string {
	if f >= 1000 || f <= -1000 {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.3g", f)
}
