# Each library understands a refusal, and may try again: HOST IMAP POP3 SUBMISSION USER PASSWORD CA
import imaplib, poplib, smtplib, sys

host, imap, pop3, submission, user, password, ca = sys.argv[1:]
m = imaplib.IMAP4(host, int(imap))
for wrong in ("wrong", "again"):
    try:
        m.login(user, wrong)
        raise SystemExit("imap: logged in with a wrong password")
    except imaplib.IMAP4.error as e:
        assert b"AUTHENTICATIONFAILED" in e.args[0], e
m.login(user, password)
m.logout()
p = poplib.POP3(host, int(pop3))
try:
    p.apop(user, password)
    raise SystemExit("pop3: APOP is not there")
except poplib.error_proto:
    pass
p.user(user)
try:
    p.pass_("wrong")
    raise SystemExit("pop3: logged in with a wrong password")
except poplib.error_proto as e:
    assert b"[AUTH]" in e.args[0], e
p.user(user)
p.pass_(password)
p.quit()
s = smtplib.SMTP(host, int(submission), local_hostname="client.example")
try:
    s.login(user, "wrong")
    raise SystemExit("submission: logged in with a wrong password")
except smtplib.SMTPAuthenticationError as e:
    assert e.smtp_code == 535, e
s.login(user, password)
s.quit()
