// Package proxyheader reads and writes the PROXY protocol, versions 1 and 2 (the specification is part of HAProxy's
// documentation): the first bytes of a connection from a load balancer, which say who its client is.
//
// A header is read where it must be and nowhere else, and never guessed: who may send one is who must. Exactly its bytes
// are consumed.
package proxyheader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// Header is what a load balancer says.
type Header struct {
	// Client is who connected to it, and Local the address that they meant; both invalid when the connection is the load
	// balancer's own (a health check), or when it does not know.
	Client, Local netip.AddrPort
	TLS           bool // the client spoke TLS with it (version 2)
}

// Errors of Read, beside those of the connection.
var (
	ErrMissing = errors.New("PROXY header missing")
	ErrHeader  = errors.New("malformed PROXY header")
)

const (
	longest1 = 107 // of version 1, CR LF included
	// longest2 bounds version 2 behind its first 16 bytes; real ones with TLS details take up to 500.
	longest2 = 4 << 10

	local, proxied = 0x20, 0x21 // version and command
	unspec         = 0x00       // family and transport
	tcp4, tcp6     = 0x11, 0x21

	typeSSL   = 0x20 // PP2_TYPE_SSL
	clientSSL = 0x01 // PP2_CLIENT_SSL
)

// signature begins version 2.
var signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// Read consumes one header. Its connection needs a deadline.
func Read(r io.Reader) (Header, error) {
	// The shortest header of version 1 has 15 bytes.
	first := make([]byte, len(signature))
	if _, err := io.ReadFull(r, first); err != nil {
		return Header{}, missing(err)
	}
	if bytes.Equal(first, signature) {
		return read2(r)
	}
	if bytes.HasPrefix(first, []byte("PROXY ")) {
		return read1(r, first)
	}
	return Header{}, ErrMissing
}

func missing(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return err
}

// read1 reads byte by byte, because what follows the line is somebody else's.
func read1(r io.Reader, line []byte) (Header, error) {
	for line[len(line)-1] != '\n' {
		if len(line) == longest1 {
			return Header{}, fmt.Errorf("%w: no end", ErrHeader)
		}
		line = append(line, 0)
		if _, err := io.ReadFull(r, line[len(line)-1:]); err != nil {
			return Header{}, missing(err)
		}
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok {
		return Header{}, fmt.Errorf("%w: no CR", ErrHeader)
	}
	fields := strings.Split(text, " ")
	if fields[1] == "UNKNOWN" {
		return Header{}, nil // whatever follows
	}
	if len(fields) != 6 || fields[1] != "TCP4" && fields[1] != "TCP6" {
		return Header{}, fmt.Errorf("%w: %q", ErrHeader, text)
	}
	client, err1 := end(fields[2], fields[4], fields[1] == "TCP4")
	to, err2 := end(fields[3], fields[5], fields[1] == "TCP4")
	if err := errors.Join(err1, err2); err != nil {
		return Header{}, fmt.Errorf("%w: %q", ErrHeader, text)
	}
	return Header{Client: client, Local: to}, nil
}

func end(address, port string, four bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(p, 10) != port || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, ErrHeader
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

func read2(r io.Reader) (Header, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Header{}, missing(err)
	}
	length := int(binary.BigEndian.Uint16(head[2:]))
	if head[0] != local && head[0] != proxied || length > longest2 {
		return Header{}, fmt.Errorf("%w: command %#x, %d bytes", ErrHeader, head[0], length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return Header{}, missing(err)
	}
	if head[0] == local || head[1] == unspec {
		return Header{}, nil
	}
	var h Header
	var size int
	switch head[1] {
	case tcp4:
		size = 4
	case tcp6:
		size = 16
	default:
		return Header{}, fmt.Errorf("%w: family %#x", ErrHeader, head[1])
	}
	if len(body) < 2*size+4 {
		return Header{}, fmt.Errorf("%w: %d bytes of addresses", ErrHeader, len(body))
	}
	client, _ := netip.AddrFromSlice(body[:size])
	to, _ := netip.AddrFromSlice(body[size : 2*size])
	ports := body[2*size:]
	h.Client = netip.AddrPortFrom(client.Unmap(), binary.BigEndian.Uint16(ports))
	h.Local = netip.AddrPortFrom(to.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	for rest := ports[4:]; len(rest) > 0; {
		if len(rest) < 3 || len(rest) < 3+int(binary.BigEndian.Uint16(rest[1:])) {
			return Header{}, fmt.Errorf("%w: cut off in its details", ErrHeader)
		}
		value := rest[3 : 3+int(binary.BigEndian.Uint16(rest[1:]))]
		if rest[0] == typeSSL && len(value) > 0 {
			h.TLS = value[0]&clientSSL != 0
		}
		rest = rest[3+len(value):]
	}
	return h, nil
}

// Append appends a header of version 2 to b. Two addresses of different families are written as IPv6.
func (h Header) Append(b []byte) []byte {
	b = append(b, signature...)
	client, to := h.Client.Addr().Unmap(), h.Local.Addr().Unmap()
	family, size := byte(tcp4), 4
	if client.Is6() || to.Is6() {
		family, size = tcp6, 16
	}
	var details []byte
	if h.TLS {
		details = []byte{typeSSL, 0, 5, clientSSL, 0, 0, 0, 0} // and nothing verified about a certificate
	}
	b = append(b, proxied, family)
	b = binary.BigEndian.AppendUint16(b, uint16(2*size+4+len(details)))
	for _, a := range []netip.Addr{client, to} {
		if size == 4 {
			b = append(b, a.AsSlice()...)
		} else {
			wide := a.As16()
			b = append(b, wide[:]...)
		}
	}
	b = binary.BigEndian.AppendUint16(b, h.Client.Port())
	b = binary.BigEndian.AppendUint16(b, h.Local.Port())
	return append(b, details...)
}
