package httphook

import (
	"crypto/sha1" // of a certificate, to be compared with nginx's; nothing relies on it
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"usher/steer/auth"
	"usher/steer/sasl"
)

// login are the headers of a request about a client that logs in.
func (h *Hook) login(r auth.Request) (http.Header, error) {
	header := h.common(r)
	set(header, "Auth-Method", method(r.Login.Mechanism))
	set(header, "Auth-User", encode(r.Login.User))
	set(header, "Auth-Pass", encode(r.Login.Password))
	if r.Login.Authzid != "" && r.Login.Authzid != r.Login.User {
		set(header, "Auth-Authzid", encode(r.Login.Authzid))
	}
	return checked(header)
}

// lookUp are the headers of a request about a user who does not log in. nginx's has an empty Auth-User; the name there
// saves a hook from reading it out of RCPT TO.
func (h *Hook) lookUp(r auth.Request) (http.Header, error) {
	header := h.common(r)
	set(header, "Auth-Method", "none")
	set(header, "Auth-User", encode(r.Login.User))
	set(header, "Auth-Pass", "")
	if r.Mail.To != "" {
		// Not encoded by nginx either: SMTP commands have no line ends, and checked makes sure of that.
		set(header, "Auth-SMTP-Helo", r.Mail.Helo)
		set(header, "Auth-SMTP-From", r.Mail.From)
		set(header, "Auth-SMTP-To", r.Mail.To)
	}
	return checked(header)
}

// common are the headers about the connection.
func (h *Hook) common(r auth.Request) http.Header {
	header := http.Header{"User-Agent": nil} // nil: Go's own is left out
	maps.Copy(header, h.config.Header)
	set(header, "Auth-Protocol", protocol(r.Protocol))
	set(header, "Auth-Login-Attempt", strconv.Itoa(max(r.Attempt, 1)))
	address(header, "Client-IP", "", r.Client)
	address(header, "Server-Addr", "Server-Port", r.Local)
	if r.RealClient.IsValid() {
		// As nginx with proxy_protocol: the addresses of the PROXY header.
		address(header, "Proxy-Protocol-Addr", "Proxy-Protocol-Port", r.Client)
		address(header, "Proxy-Protocol-Server-Addr", "Proxy-Protocol-Server-Port", r.Local)
	}
	if r.ClientHost != "" {
		set(header, "Client-Host", hostName(r.ClientHost))
	}
	if r.Session != "" {
		set(header, "Auth-Session", encode(r.Session))
	}
	if r.TLS != nil {
		h.tls(header, r.TLS)
	}
	return header
}

// set writes a header under exactly this name: Go would make "Client-Ip" of it, and not every hook ignores case.
func set(header http.Header, name, value string) { header[name] = []string{value} }

func address(header http.Header, name, portName string, a netip.AddrPort) {
	if !a.IsValid() {
		return
	}
	set(header, name, a.Addr().Unmap().WithZone("").String())
	if portName != "" {
		set(header, portName, strconv.Itoa(int(a.Port())))
	}
}

// tls are nginx's headers about the client's TLS. The names of ciphers are OpenSSL's.
func (h *Hook) tls(header http.Header, state *tls.ConnectionState) {
	set(header, "Auth-SSL", "on")
	set(header, "Auth-SSL-Protocol", strings.Replace(tls.VersionName(state.Version), "TLS ", "TLSv", 1))
	set(header, "Auth-SSL-Cipher", openSSL(tls.CipherSuiteName(state.CipherSuite)))
	if len(state.PeerCertificates) == 0 {
		set(header, "Auth-SSL-Verify", "NONE")
		return
	}
	c := state.PeerCertificates[0]
	if len(state.VerifiedChains) > 0 {
		set(header, "Auth-SSL-Verify", "SUCCESS")
	} else {
		set(header, "Auth-SSL-Verify", "FAILED:certificate is not verified")
	}
	set(header, "Auth-SSL-Subject", visible(c.Subject.String()))
	set(header, "Auth-SSL-Issuer", visible(c.Issuer.String()))
	set(header, "Auth-SSL-Serial", serial(c))
	fingerprint := sha1.Sum(c.Raw)
	set(header, "Auth-SSL-Fingerprint", hex.EncodeToString(fingerprint[:]))
	if h.config.PassClientCert {
		set(header, "Auth-SSL-Cert", encode(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))))
	}
}

// serial is the number in whole bytes, as OpenSSL prints it.
func serial(c *x509.Certificate) string {
	if c.SerialNumber == nil || c.SerialNumber.Sign() == 0 {
		return "00"
	}
	return strings.ToUpper(hex.EncodeToString(c.SerialNumber.Bytes()))
}

// openSSL turns TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 to ECDHE-RSA-AES128-GCM-SHA256; those of TLS 1.3 have one name only.
func openSSL(suite string) string {
	exchange, cipher, ok := strings.Cut(strings.TrimPrefix(suite, "TLS_"), "_WITH_")
	if !ok {
		return suite
	}
	cipher = strings.Replace(strings.Replace(cipher, "AES_", "AES", 1), "_CBC", "", 1)
	if strings.HasPrefix(cipher, "CHACHA20") {
		cipher = strings.TrimSuffix(cipher, "_SHA256")
	}
	if exchange != "RSA" {
		cipher = exchange + "_" + cipher
	}
	return strings.ReplaceAll(cipher, "_", "-")
}

// method is nginx's word for a mechanism. What gives the hook a clear password is "plain" however it was said.
func method(mechanism string) string {
	switch m := strings.ToLower(mechanism); m {
	case "external", "xoauth2", "oauthbearer":
		return m
	}
	return "plain"
}

// protocol is nginx's word, where it has the protocol.
func protocol(p string) string {
	if p == "submission" {
		return "smtp"
	}
	return p
}

// encode is the percent-encoding of nginx's mail proxy: control characters, space and "%". DEL is one more here.
func encode(s string) string {
	return escape(s, func(c byte) bool { return c <= ' ' || c == '%' || c == 0x7f })
}

// visible leaves everything as it is but control characters, for values that nginx does not encode.
func visible(s string) string {
	return escape(s, func(c byte) bool { return c < ' ' || c == 0x7f })
}

func escape(s string, wanted func(byte) bool) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; wanted(c) {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// hostName is a name by reverse look-up: whoever owns the address owns the name and may write anything. What is no host
// name is as good as none, for which nginx has this word.
func hostName(name string) string {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"
	if name == "" || len(name) > 255 {
		return "[UNAVAILABLE]"
	}
	for i := range len(name) {
		if strings.IndexByte(allowed, name[i]) < 0 {
			return "[UNAVAILABLE]"
		}
	}
	return name
}

// checked is the last gate, behind the encoding of each value: no header has a control character.
func checked(header http.Header) (http.Header, error) {
	for name, values := range header {
		for _, value := range values {
			if !printable(value) {
				return nil, fmt.Errorf("%w: control character for the header %s", auth.ErrCredentials, name)
			}
		}
	}
	return header, nil
}

func printable(s string) bool { return sasl.Allowed(s) }

// token reports whether s may be the name of a header.
func token(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}
