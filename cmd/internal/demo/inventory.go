package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"usher/loader/netns"
)

// inventory knows what was made, and finds what is left of it.
type inventory struct {
	sockets    int // open ones of this process before: a forgotten one would keep a namespace alive
	dirs       []string
	namespaces []string // as links in /proc name them: "net:[4026532000]"
	processes  []int
}

func takeInventory() (*inventory, error) {
	n, err := openSockets()
	return &inventory{sockets: n}, err
}

func (v *inventory) addDir(dir string) { v.dirs = append(v.dirs, dir) }

func (v *inventory) addProcess(pid int) { v.processes = append(v.processes, pid) }

func (v *inventory) addNamespaces(all ...*netns.NS) {
	for _, ns := range all {
		v.namespaces = append(v.namespaces, fmt.Sprintf("net:[%d]", ns.Inode()))
	}
}

// vanishTime is what the kernel may need to end threads and processes.
const vanishTime = 5 * time.Second

// check returns an error that names everything that is left.
func (v *inventory) check() error {
	for end := time.Now().Add(vanishTime); ; time.Sleep(5 * time.Millisecond) {
		left := v.find()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
		}
	}
}

func (v *inventory) find() (left []string) {
	for _, dir := range v.dirs {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			left = append(left, "directory "+dir)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		left = append(left, "mounts that cannot be read: "+err.Error())
	}
	for _, dir := range v.dirs {
		if strings.Contains(string(mounts), " "+dir+"/") {
			left = append(left, "mount below "+dir)
		}
	}
	for _, pid := range v.processes {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			left = append(left, fmt.Sprintf("process %d", pid))
		}
	}
	left = append(left, v.inNamespaces()...)
	if n, err := openSockets(); err != nil || n > v.sockets {
		left = append(left, fmt.Sprintf("%d open sockets, %d before", n, v.sockets))
	}
	return left
}

// inNamespaces finds who still uses one of our namespaces: processes, our own threads and our open files.
func (v *inventory) inNamespaces() (left []string) {
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		links, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // the pattern is a constant
		}
		for _, link := range links {
			to, err := os.Readlink(link)
			if err != nil {
				continue // it has just ended, or is none of our business
			}
			for _, ns := range v.namespaces {
				if to == ns {
					left = append(left, fmt.Sprintf("namespace %s in %s", ns, link))
				}
			}
		}
	}
	return left
}

// openSockets counts this process's sockets.
func openSockets() (n int, err error) {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		to, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n, nil
}
