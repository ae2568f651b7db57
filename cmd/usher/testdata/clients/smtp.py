# Submission by Python's smtplib: HOST PORT TLS FORM USER PASSWORD CA
import smtplib, ssl, sys

host, port, tls, form, user, password, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if tls == "implicit":
    s = smtplib.SMTP_SSL(host, int(port), local_hostname="client.example", context=context)
else:
    s = smtplib.SMTP(host, int(port), local_hostname="client.example")
if tls == "starttls":
    s.starttls(context=context)
s.ehlo()
assert form.upper() in s.esmtp_features["auth"].split(), s.esmtp_features
s.user, s.password = user, password
code, text = s.auth(form.upper(), getattr(s, "auth_" + form), initial_response_ok=form == "plain")
assert code == 235, (code, text)
print("ready", flush=True)
sys.stdin.readline()
for number in range(2):
    s.sendmail(user, ["anna@example.org"], "Subject: %s %d\r\n\r\n%s" % (user, number, "a line\r\n.dots\r\n" * 200))
s.quit()
