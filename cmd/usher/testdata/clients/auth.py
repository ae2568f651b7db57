# A login by imaplib with what the proxy verifies itself: HOST PORT FORM USER PASSWORD
import imaplib, sys

host, port, form, user, password = sys.argv[1:]
m = imaplib.IMAP4(host, int(port))
try:
    m.login(user, "wrong")
    raise SystemExit("logged in with a wrong password")
except imaplib.IMAP4.error as e:
    assert b"AUTHENTICATIONFAILED" in e.args[0], e
if form == "cram-md5":  # the server asks, and nobody but it knows the password
    assert "AUTH=CRAM-MD5" in m.capabilities, m.capabilities
    m.login_cram_md5(user, password)
elif form == "plain":
    m.authenticate("PLAIN", lambda _: b"\0" + user.encode() + b"\0" + password.encode())
else:
    m.login(user, password)
print("ready", flush=True)
sys.stdin.readline()
assert m.noop()[0] == "OK"
m.logout()
