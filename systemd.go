package main

import (
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// socketNames are what the FileDescriptorName= of a systemd socket may be: the
// variable whose address it stands in for.
func socketNames() map[string]string {
	return map[string]string{"registry": "LARDER_ADDR", "admin": "LARDER_ADMIN_ADDR"}
}

// openSockets takes over the sockets that systemd has opened for larder, if any. It
// keeps them open when larder stops: who connects meanwhile waits for the next one.
func (p *program) openSockets() error {
	for _, f := range activation.Files(true) {
		err := p.openSocket(f)
		if f.Close(); err != nil { // the listener has a descriptor of its own
			return &configError{[]error{fmt.Errorf("socket %q, handed down by systemd: %w", f.Name(), err)}}
		}
	}
	return nil
}

func (p *program) openSocket(f *os.File) error {
	variable, ok := socketNames()[f.Name()]
	switch {
	case !ok:
		return fmt.Errorf("FileDescriptorName= is neither registry nor admin")
	case p.sockets[variable] != nil:
		return fmt.Errorf("there are two of that name")
	case variable == "LARDER_ADMIN_ADDR" && p.cfg.AdminAddr == "":
		return fmt.Errorf("LARDER_ADMIN_ADDR turns it off")
	}
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	if p.sockets == nil {
		p.sockets = make(map[string]net.Listener)
	}
	p.sockets[variable] = l
	return nil
}

// tellSystemd says how far larder is to who has started it, if that wants to know.
func (p *program) tellSystemd(states ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(states, "\n")); err != nil {
		p.log.Warn("systemd could not be told", zap.Strings("states", states), zap.Error(err))
	}
}
