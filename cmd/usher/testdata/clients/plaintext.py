# Where there is STARTTLS, no password is taken before it: HOST IMAP POP3 SUBMISSION USER PASSWORD CA
import imaplib, poplib, smtplib, sys

host, imap, pop3, submission, user, password, ca = sys.argv[1:]
m = imaplib.IMAP4(host, int(imap))
assert "LOGINDISABLED" in m.capabilities, m.capabilities
try:
    m.login(user, password)
    raise SystemExit("imap: logged in without TLS")
except imaplib.IMAP4.error as e:
    assert b"PRIVACYREQUIRED" in e.args[0], e
m.logout()
p = poplib.POP3(host, int(pop3))
assert "USER" not in p.capa() and "SASL" not in p.capa(), p.capa()
try:
    p.user(user)
    p.pass_(password)
    raise SystemExit("pop3: logged in without TLS")
except poplib.error_proto:
    pass
p.quit()
s = smtplib.SMTP(host, int(submission), local_hostname="client.example")
s.ehlo()
assert "auth" not in s.esmtp_features, s.esmtp_features
try:
    s.sendmail(user, ["anna@example.org"], "x")
    raise SystemExit("submission: took a mail without a login")
except smtplib.SMTPException:
    pass
