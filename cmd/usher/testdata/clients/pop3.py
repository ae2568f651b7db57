# POP3 by Python's poplib: HOST PORT TLS FORM USER PASSWORD CA
import base64, poplib, ssl, sys

host, port, tls, form, user, password, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if tls == "implicit":
    p = poplib.POP3_SSL(host, int(port), context=context)
else:
    p = poplib.POP3(host, int(port))
if tls == "starttls":
    assert "STLS" in p.capa(), p.capa()
    p.stls(context)
if form == "user":
    p.user(user)
    p.pass_(password)
else:  # what poplib does not know
    assert "PLAIN" in p.capa()["SASL"], p.capa()
    p._shortcmd("AUTH PLAIN " + base64.b64encode(b"\0" + user.encode() + b"\0" + password.encode()).decode())
print("ready", flush=True)
sys.stdin.readline()
assert p.stat() == (0, 0), p.stat()
assert p.list()[1] == []
p.noop()
p.quit()
