package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// fifoMode lets the login processes write, whoever they are; the directory keeps others out.
const fifoMode = 0o666

// openFIFO opens the FIFO in which login processes name their users, and makes it if it is not there. One
// that is there stays: processes have it open, and would write to the old one for ever.
func openFIFO(path string) (*os.File, error) {
	if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() != fs.ModeNamedPipe {
		return nil, fmt.Errorf("%s is in the way: it is not a FIFO", path)
	}
	// For writing, too: otherwise there is an end of file each time that the last writer has gone.
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(fifoMode); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// heed hears which users have sessions: "<tab-escaped user> LF" each half life of an entry (proxy-notify-ipc.md
// section 1), until the FIFO is closed.
func heed(ctx context.Context, fifo io.Reader, refresh func(user string)) error {
	in := bufio.NewReaderSize(fifo, maxRelayLine)
	for skip := false; ; {
		b, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			skip = true // the rest of a line that is no name is no name either
		case err != nil:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("proxy-notify: %w", err)
		case skip:
			skip = false
		default:
			if user := unescape(string(b[:len(b)-1])); user != "" {
				refresh(user)
			}
		}
	}
}
