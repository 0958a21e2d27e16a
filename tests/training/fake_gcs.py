"""Serves Google Cloud Storage on this machine, as far as TensorFlow and TensorStore use it.

TensorStore takes another address from a variable. TensorFlow has no such option: it uses this
server as a proxy to Google, and accepts a certificate created here as Google's.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import ssl
import subprocess
import threading
import urllib.parse

_PAGE = 3  # Names in a page of a list, few, so that there are several pages.


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers requests; `server.objects` is {"BUCKET/NAME": (generation, bytes)}."""

  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def do_CONNECT(self):  # noqa: N802
    self.send_response(200)
    self.end_headers()
    self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
    self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
    self.close_connection = False

  def handle_all(self):
    parts = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    body = self._body()
    with self.server.lock:
      self.server.requests.append(f"{self.command} {self.path}")
      answer = self._answer(parts.path, query, body)
    status, headers, content = answer
    if isinstance(content, dict):
      content = json.dumps(content).encode()
    self.send_response(status)
    for name, value in (headers | {"Content-Length": len(content)}).items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content)

  do_GET = do_POST = do_PUT = do_DELETE = handle_all  # noqa: N815

  def _body(self):
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    body = b""
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _answer(self, path, query, body):
    """Returns the answer: a status, headers, and bytes or a dict that is sent as JSON."""
    objects, unquote = self.server.objects, urllib.parse.unquote
    bucket = r"/storage/v1/b/([^/]+)"
    if match := re.fullmatch(f"/upload{bucket}/o", path):
      key = f"{match[1]}/{query['name']}"
      if self.command == "PUT" or query["uploadType"] == "media":
        return self._put(key, query, body)
      host = f"https://{self.headers['Host']}"
      return 200, {"Location": f"{host}{self.path}"}, b""
    if match := re.fullmatch(bucket + "/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", path):
      source, target = f"{match[1]}/{unquote(match[2])}", f"{match[3]}/{unquote(match[4])}"
      if source not in objects:
        return 404, {}, {}
      return 200, {}, {"done": True, "resource": self._put(target, {}, objects[source][1])[2]}
    if match := re.fullmatch(f"{bucket}/o", path):
      return 200, {}, self._list(match[1] + "/", query)
    if re.fullmatch(f"{bucket}(/storageLayout)?", path):
      return 200, {}, {"hierarchicalNamespace": {"enabled": False}}
    object_match = re.fullmatch(f"{bucket}/o/([^/]+)", path)
    match = object_match or re.fullmatch("/([^/]+)/(.+)", path)
    key = f"{match[1]}/{unquote(match[2])}"
    if key not in objects:
      return 404, {}, {}
    generation, content = objects[key]
    if str(generation) == query.get("ifGenerationNotMatch"):
      return 304, {}, b""
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return 412, {}, {}
    if self.command == "DELETE":
      del objects[key]
      return 204, {}, b""
    if object_match and query.get("alt") != "media":
      return 200, {}, self._resource(key)
    return self._range(content, {"x-goog-generation": generation})

  def _range(self, content, headers):
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    if not match:
      return 200, headers, content
    start, end = int(match[1]), int(match[2] or len(content) - 1)
    if start >= len(content):
      return 416, headers, b""
    part = content[start : end + 1]
    span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return 206, headers | {"Content-Range": span}, part

  def _put(self, key, query, body):
    current = self.server.objects.get(key, (0, b""))[0]
    if query.get("ifGenerationMatch", str(current)) != str(current):
      return 412, {}, {}
    self.server.generation += 1
    self.server.objects[key] = (self.server.generation, body)
    return 200, {}, self._resource(key)

  def _resource(self, key):
    generation, content = self.server.objects[key]
    bucket, _, name = key.partition("/")
    return {
      "kind": "storage#object",
      "bucket": bucket,
      "name": name,
      "generation": str(generation),
      "size": str(len(content)),
      "updated": "2020-01-01T00:00:00.000Z",
      "timeCreated": "2020-01-01T00:00:00.000Z",
      "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
    }

  def _list(self, bucket, query):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    names, entries = (key.removeprefix(bucket) for key in sorted(self.server.objects)), []
    for name in names:
      if not (bucket + name in self.server.objects and name.startswith(prefix)):
        continue
      if not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
        continue
      inside = name[len(prefix) :].find(delimiter) if delimiter else -1
      entry = name if inside < 0 else name[: len(prefix) + inside + len(delimiter)]
      if entry > query.get("pageToken", "") and (not entries or entries[-1] != (entry, inside < 0)):
        entries.append((entry, inside < 0))
    size = min(_PAGE, int(query.get("maxResults", _PAGE)))
    page, more = entries[:size], entries[size:]
    return {
      "items": [self._resource(bucket + name) for name, is_object in page if is_object],
      "prefixes": [name for name, is_object in page if not is_object],
      **({"nextPageToken": page[-1][0]} if more else {}),
    }


@contextlib.contextmanager
def bucket(folder):
  """Serves buckets; yields the server, whose `environment` makes a process use it.

  Args:
    folder: receives the certificate.
  """
  key, certificate = folder / "key.pem", folder / "certificate.pem"
  subprocess.run(
    ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key]
    + ["-out", certificate, "-subj", "/CN=googleapis.com"]
    + ["-addext", "subjectAltName=DNS:www.googleapis.com,DNS:storage.googleapis.com"],
    check=True,
    capture_output=True,
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.daemon_threads = True
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate, key)
    server.objects, server.generation, server.requests = {}, 0, []
    server.lock = threading.Lock()
    address = f"http://127.0.0.1:{server.server_port}"
    server.environment = {
      "TENSORSTORE_GCS_HTTP_URL": address,
      "https_proxy": address,
      "CURL_CA_BUNDLE": str(certificate),
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
      "NO_GCE_CHECK": "true",
      "GCS_READ_CACHE_BLOCK_SIZE_MB": "1",  # Allocated and cleared for each file read.
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
