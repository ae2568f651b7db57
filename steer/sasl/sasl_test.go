package sasl

import (
	"errors"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		err            error
	}{
		{"message", "AGZyZWQAeA==", "\x00fred\x00x", nil},
		{"empty initial response", "=", "", nil},
		{"empty continuation", "", "", nil},
		{"no padding", "AGZyZWQAeA", "", ErrBase64},
		{"bits behind the end", "AGZyZWQAeB==", "", ErrBase64},
		{"line end inside", "AGZy\rZWQAeA==", "", ErrBase64},
		{"URL alphabet", "__8=", "", ErrBase64},
		{"cancel", "*", "", ErrBase64},
		{"NUL", "AAAA\x00", "", ErrBase64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode([]byte(tt.in))
			if string(got) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestDecodePlain(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Plain
		err      error
	}{
		{"user", "\x00fred\x00x", Plain{Authcid: "fred", Password: "x"}, nil},
		{"for another", "fred\x00master\x00x", Plain{"fred", "master", "x"}, nil},
		{"8 bits and spaces", "\x00fr\xc3\xabd\x00 x y ", Plain{Authcid: "fr\xc3\xabd", Password: " x y "}, nil},
		{"empty fields", "\x00\x00", Plain{}, nil},
		{"nothing", "", Plain{}, ErrMessage},
		{"two fields", "fred\x00x", Plain{}, ErrMessage},
		{"four fields", "a\x00b\x00c\x00d", Plain{}, ErrMessage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DecodePlain([]byte(tt.in))
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestPlainEncodeRefusesNUL(t *testing.T) {
	for _, p := range []Plain{{Authzid: "\x00"}, {Authcid: "a\x00b"}, {Password: "a\x00"}} {
		if m, err := p.Encode(); !errors.Is(err, ErrMessage) {
			t.Errorf("%q became %q, %v", p, m, err)
		}
	}
}

func TestAllowed(t *testing.T) {
	for s, want := range map[string]bool{"": true, "fred*x {3}": true, "fr\xebd": true, "a\r": false, "a\nb": false, "\x00": false, "\x7f": false, "\t": false} {
		if Allowed(s) != want {
			t.Errorf("%q: got %v", s, !want)
		}
	}
}

// What decodes comes out the same when it is encoded again; there is one spelling for each message.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"AGZyZWQAeA==", "=", "", "*", "ZnJlZABtYXN0ZXIAeA==", "AAA=", "AAB="} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, response []byte) {
		message, err := Decode(response)
		if err != nil {
			return
		}
		if again := Encode(message); again != string(response) && len(message) > 0 {
			t.Errorf("%q is another spelling of %q", response, again)
		}
		plain, err := DecodePlain(message)
		if err != nil {
			return
		}
		if strings.Contains(plain.Authzid+plain.Authcid+plain.Password, "\x00") {
			t.Errorf("NUL in %q", plain)
		}
		if again, err := plain.Encode(); err != nil || string(again) != string(message) {
			t.Errorf("%q became %q, %v", message, again, err)
		}
	})
}
