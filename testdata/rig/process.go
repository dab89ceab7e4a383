package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a process may take to answer, and to end.
const patience = 20 * time.Second

// Process is a program that runs, in a process group of its own with all that
// it starts.
type Process struct {
	Addr string
	Idle int64 // resident bytes when it had just begun to answer

	cmd    *exec.Cmd
	ended  chan struct{} // closed once it has, with err set
	err    error
	output string // the file with what it says
}

// FreeAddr is a loopback address that nobody listens on.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// StartProcess starts cmd with what it says going to a file, and waits until it
// answers on addr.
func StartProcess(ctx context.Context, cmd *exec.Cmd, addr, output string) (*Process, error) {
	log, err := os.Create(output)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{Addr: addr, cmd: cmd, ended: make(chan struct{}), output: output}
	go func() { // ends with the process, which stop waits for
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := p.waitUntilUp(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	p.Idle, _, err = p.Memory()
	return p, err
}

// waitUntilUp waits for an answer, whichever.
func (p *Process) waitUntilUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr+"/v2/", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return resp.Body.Close()
		}
		select {
		case <-p.ended:
			said, _ := os.ReadFile(p.output)
			return fmt.Errorf("ended at its start: %v: %s", p.err, bytes.TrimSpace(said[max(0, len(said)-2000):]))
		case <-ctx.Done():
			return fmt.Errorf("does not answer on %s: %w", p.Addr, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop ends the process and all that it has started, and waits for it.
func (p *Process) Stop() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
	}
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
}

// pids are those of the process group.
func (p *Process) pids() ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has just ended
		}
		if pid, group := parseStat(string(stat)); group == p.cmd.Process.Pid {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("the process has ended: %w", errors.Join(p.err, os.ErrProcessDone))
	}
	return pids, nil
}

// parseStat takes the process and its group from /proc/PID/stat. The name in
// between is in parentheses, and may have some of its own, and blanks.
func parseStat(stat string) (pid, group int) {
	head, _, _ := strings.Cut(stat, " ")
	pid, _ = strconv.Atoi(head)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) > 2 {
		group, _ = strconv.Atoi(fields[2]) // after state and parent
	}
	return pid, group
}

// CPU is the time that the process and what it has started have computed: what
// /proc/PID/stat has as utime and stime, in nanoseconds instead of hundredths
// of a second.
func (p *Process) CPU() (time.Duration, error) {
	pids, err := p.pids()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil { // clock_getcpuclockid(3)
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// SettledCPU waits until the process is done with what is still to be done
// after the last answer, for 5 s at most.
func (p *Process) SettledCPU() (time.Duration, error) {
	const quiet, poll = time.Millisecond, 25 * time.Millisecond
	last, err := p.CPU()
	for range 5 * time.Second / poll {
		if err != nil {
			return 0, err
		}
		time.Sleep(poll)
		var now time.Duration
		now, err = p.CPU()
		if now-last < quiet {
			return now, err
		}
		last = now
	}
	return last, err
}

// Memory is what is resident, and what was at most.
func (p *Process) Memory() (now, peak int64, err error) {
	pids, err := p.pids()
	if err != nil {
		return 0, 0, err
	}
	for _, pid := range pids {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return 0, 0, err
		}
		now += parseStatus(string(status), "VmRSS")
		peak += parseStatus(string(status), "VmHWM")
	}
	return now, peak, nil
}

// parseStatus takes the bytes of one field from /proc/PID/status, where they
// are in kB.
func parseStatus(status, field string) int64 {
	_, rest, _ := strings.Cut(status, "\n"+field+":")
	line, _, _ := strings.Cut(rest, "kB")
	n, _ := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return n << 10
}
