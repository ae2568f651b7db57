# IMAP by Python's imaplib: HOST PORT TLS FORM USER PASSWORD CA
import imaplib, ssl, sys

host, port, tls, form, user, password, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if tls == "implicit":
    m = imaplib.IMAP4_SSL(host, int(port), ssl_context=context)
else:
    m = imaplib.IMAP4(host, int(port))
if tls == "starttls":
    assert "STARTTLS" in m.capabilities, m.capabilities
    m.starttls(context)
if form == "login":
    m.login(user, password)
elif form == "literal":  # what imaplib does not do by itself: the password as a literal
    m.literal = password.encode()
    kind, data = m._simple_command("LOGIN", user)
    assert kind == "OK", data
    m.state = "AUTH"
elif form == "plain":
    m.authenticate("PLAIN", lambda _: b"\0" + user.encode() + b"\0" + password.encode())
print("ready", flush=True)
sys.stdin.readline()
mail = b"Subject: one\r\n\r\n" + b"line of text\r\n" * 2000
kind, data = m.append("INBOX", None, None, mail)
assert kind == "OK", data
kind, data = m.select("INBOX")
assert (kind, data) == ("OK", [b"1"]), (kind, data)
kind, data = m.fetch("1", "(BODY.PEEK[])")
assert data[0][1] == mail, len(data[0][1])
kind, data = m.search(None, "SUBJECT", "one")
assert data == [b"1"], data
assert m.close()[0] == "OK"
assert m.logout()[0] == "BYE"
