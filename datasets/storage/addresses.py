"""Addresses of files: opens the stores of paths and pyarrow filesystem URIs, prints addresses, explains errors.

An S3 address is s3://bucket/path?option=value&..., or s3://KEY:SECRET@bucket/path with both percent-encoded.
Its options: endpoint_override=http://host:port (MinIO and other stores; else AWS_ENDPOINT_URL_S3, then
AWS_ENDPOINT_URL, then AWS itself), scheme, region (without it, on AWS, one request asks for it) and
tls_ca_file_path. Credentials come from the address, then from the sources of the AWS SDK: environment, ~/.aws,
web identity, the role of the node. pyarrow opens every other scheme.

A request to S3 is tried ATTEMPTS times. A failing request ends within about 7 s where no server listens, and
within 27 s where the connection gets no answer. Where the store accepts the connection and then falls silent, it
ends within 50 s for reading and listing, 80 s for writing a small file, and 3 minutes for a large one (a silent
store is noticed late while the network still takes bytes). With pyarrow's own settings for URIs, reading took
6 s, 36 s and 99 s in these three cases.
"""

import functools
import http.client
import os
import re
import sys
import urllib.parse
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from passersby.errors import InputError
from passersby.files import normal_address, normal_path

ATTEMPTS = 4  # with the SDK's pauses between them, at most 1, 2 and 4 s
CONNECT_SECONDS = 5
REQUEST_SECONDS = 10  # limit for a time without a single byte; a slow upload continues
GCS_RETRY_SECONDS = 30  # Google's library would try for 15 minutes
METADATA = "http://169.254.169.254"  # Amazon's nodes ask their role's credentials there
METADATA_SECONDS = 1

S3_OPTIONS = ("endpoint_override", "scheme", "region", "tls_ca_file_path")
# These options hold no secrets. They are printed, so that a copied command works.
SHOWN_OPTIONS = {*S3_OPTIONS, "location", "project_id", "retry_limit_seconds"}
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (on a cluster: on every node), a profile in ~/.aws, or give "
    "the nodes a role"
)
STORES = ("s3", "gcs", "abfs")  # pyarrow's names of the stores that have buckets

_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
_SLASHES = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/*")  # shown() knows credentials behind s3:// only
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation: ?(.*)", re.DOTALL)
_REFUSED = {
    "ACCESS_DENIED": "access denied: the key or its secret is wrong, or has no permission here",
    "SIGNATURE_DOES_NOT_MATCH": "the secret does not belong to the access key",
    "INVALID_ACCESS_KEY_ID": "the store does not know this access key",
    "INVALID_CLIENT_TOKEN_ID": "the store does not know this access key",
    "UNRECOGNIZED_CLIENT": "the store does not know this access key",
    "MISSING_AUTHENTICATION_TOKEN": "the store wants credentials",
}


def checked_address(address: str, option: str = "") -> str:
    """An address in its usual form (`passersby.files.normal_address`); a path on a disk as it is.

    Raises InputError, which begins with `option` and the address, for an address that means no place.
    """
    try:
        return normal_address(address)
    except InputError as error:
        uri = _SLASHES.sub(r"\1://", address.strip())
        raise InputError(f"{option} {shown(uri)}: {error}".lstrip()) from None  # the cause may show a secret


def open_store(address: str, option: str) -> tuple[fs.FileSystem, str]:
    """The file system of an absolute path or URI, and the path of the address in it, without a slash at the end.

    Raises InputError, which begins with `option` and the address, for an invalid address and for a bucket whose
    region the store does not give. No other request is made.
    """
    address = checked_address(address, option)
    check_utf8(address, option)
    try:
        if address.startswith("/"):
            files, root = fs.LocalFileSystem(), address
        elif address.startswith("s3://"):
            files, root = _open_s3(address)
        elif address.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in address:
            sign = "&" if "?" in address else "?"
            files, root = fs.FileSystem.from_uri(f"{address}{sign}retry_limit_seconds={GCS_RETRY_SECONDS}")
        else:
            files, root = fs.FileSystem.from_uri(address)
    except (InputError, pa.ArrowInvalid, OSError) as error:
        secret = address.partition("://")[2].rpartition("@")[0]
        text = explain(error)
        if secret:
            text = text.replace(secret, "***")
        raise InputError(f"{option} {shown(address)}: {text}") from None  # the cause would show the secret
    return files, root.rstrip("/")


def check_utf8(address: str, option: str) -> None:
    """Raises InputError for an address with bytes that are not UTF-8: neither pyarrow nor Ray takes such a name."""
    try:
        address.encode()
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        if encoding != "utf-8" and _is_utf8(address):
            raise InputError(
                f"{option} {shown(address)}: this Python takes names of files for {encoding}, as LC_ALL and "
                "PYTHONUTF8 say: set PYTHONUTF8=1"
            ) from error
        raise InputError(f"{option} {shown(address)}: a part of the name is not UTF-8: rename it") from error


def _is_utf8(name: str) -> bool:
    """Whether the bytes of a name, which the file system's encoding could not decode, are UTF-8."""
    try:
        os.fsencode(name).decode()
    except UnicodeError:
        return False
    return True


def shown(address: str, name: str | None = None) -> str:
    """The address for printing, without credentials; with `name` the address of a file below it.

    The address of a file has no options. Otherwise *** stands for the credentials, and the options that hold
    no secrets stay.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address if name is None else f"{address.rstrip('/')}/{name}"
    location, _, query = rest.partition("?")
    authority, _, path = location.partition("/")
    user, at, host = authority.rpartition("@")
    if not at and ":" in authority and "@" in path:  # KEY:SECRET@ where the secret has a slash that is not encoded
        user, at, (host, _, path) = "***", "@", path.rpartition("@")[2].partition("/")
    elif at and (":" in user or scheme.lower() in ("s3", "s3a", "s3n")):  # abfs://container@account has no secret there
        user = "***"
    path = path.rstrip("/")
    base = f"{scheme}://{user}{at}{host}" + (f"/{path}" if path or not host else "")
    if name is not None:
        base = base.replace("://***@", "://", 1)
        return f"{base}{'' if base.endswith('/') else '/'}{name}"
    shown_options = "&".join(part for part in query.split("&") if part.partition("=")[0] in SHOWN_OPTIONS)
    return f"{base}?{shown_options}" if shown_options else base


def explain(error: Exception, found_credentials: bool = True) -> str:
    """A store's error in one short line with the way out, as Arrow's texts have hundreds of characters."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = " ".join(str(error).split())
    if match := _AWS.search(text):
        code, status, operation, detail = match.groups()
        return _explain_s3(code, status, operation, detail, found_credentials)
    if "google::cloud::Status" in text:
        return _explain_gcs(text)
    return text if len(text) < 300 else f"{text[:300]}..."


def finds_credentials(address: str) -> bool:
    """Whether any source that may hold credentials for an S3 address exists; True for other schemes."""
    if not address.startswith("s3://"):
        return True
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
             "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")  # fmt: skip
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
    )
    return (
        "@" in urllib.parse.urlsplit(address).netloc
        or any(os.environ.get(name) for name in names)
        or any(Path(file).expanduser().is_file() for file in files)
        or os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"
    )


def _open_s3(address: str) -> tuple[fs.S3FileSystem, str]:
    # pyarrow's from_uri is not used: it takes neither time limits nor a retry strategy, and drops the text after #.
    parts = urllib.parse.urlsplit(address)
    user, _, bucket = parts.netloc.rpartition("@")
    key, _, secret = map(urllib.parse.unquote, user.partition(":"))
    if not _BUCKET.fullmatch(bucket) or "@" in user:
        raise InputError("it names no bucket; a secret is percent-encoded: / is %2F, @ is %40")
    if bool(key) != bool(secret):
        raise InputError("one of access key and secret is missing: s3://KEY:SECRET@bucket/path, or leave out both")
    options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in S3_OPTIONS:
            raise InputError(f"there is no option {name}; there are {', '.join(S3_OPTIONS)}")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options.setdefault("endpoint_override", endpoint)
    if not key and not os.environ.get("AWS_ACCESS_KEY_ID"):
        _skip_absent_metadata()
    if not options.get("region") and not options.get("endpoint_override"):
        options["region"] = fs.resolve_s3_region(bucket)
    files = fs.S3FileSystem(
        **{name: value for name, value in options.items() if value},
        **({"access_key": key, "secret_key": secret} if key else {}),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small file takes one request instead of three, and leaves no unfinished upload
    )
    return files, normal_path(f"{bucket}/{urllib.parse.unquote(parts.path)}")


@functools.cache
def _skip_absent_metadata() -> None:
    # Without a key the SDK asks Amazon's metadata service before every request. Where no service answers, that takes
    # twice 1 s each time (14 s at the start). So this function asks once, and switches the SDK's queries off where no
    # service answers.
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA
    parts = urllib.parse.urlsplit(endpoint)
    if parts.hostname is None:
        raise InputError(f"AWS_EC2_METADATA_SERVICE_ENDPOINT {endpoint!r} names no host: write http://HOST")
    for _ in range(2):
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=METADATA_SECONDS)
        try:
            connection.request("GET", "/latest/meta-data/")
            connection.getresponse()
            return
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def _explain_s3(code: str, status: str | None, operation: str, detail: str, found_credentials: bool) -> str:
    detail = detail.partition("Details: ")[2] or detail
    detail = re.sub(r" \(Request ID: .*?\)| after \d+ ms.*|Less than .*", "", detail).strip(" .")
    if code == "NETWORK_CONNECTION":
        if detail == "Operation too slow":
            detail = f"silent for {REQUEST_SECONDS} s"
        return (
            f"no answer from the store ({detail}); check the network, and endpoint_override=http://HOST:PORT in the "
            "address or AWS_ENDPOINT_URL"
        )
    if not found_credentials:
        return f"no credentials were found ({code}): {CREDENTIALS}"
    if code in _REFUSED:
        return f"{_REFUSED[code]} ({code}): {CREDENTIALS}"
    if code == "NO_SUCH_BUCKET":
        return "there is no such bucket: create it, or correct its name"
    if "expired" in (code + detail).lower():
        return f"the credentials have expired ({code}): renew them"
    if status in ("301", "307", "400") and operation.startswith("Head"):
        return (
            f"the store answers with HTTP status {status}: is the bucket in another region? Give region= in the address"
        )
    detail = detail if len(detail) < 160 else f"{detail[:160]}..."
    kind = f"{code} HTTP status {status}" if status else code
    return f"the store failed ({kind} during {operation}{': ' * bool(detail)}{detail})"


def _explain_gcs(text: str) -> str:
    match = re.search(r"google::cloud::Status\((\w+)", text)
    code = match[1] if match else "UNKNOWN"
    detail = re.search(r"CURL error \[\d+\]=([^\[]*?)(?: error_info| \[|$)", text)
    reason = f"{code}: {detail[1].strip(' .)')}" if detail else code
    if "OAuth2" in text or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return (
            f"no credentials that Google Cloud Storage takes ({reason}): set GOOGLE_APPLICATION_CREDENTIALS to a file "
            "of credentials on every node, or give the nodes a service account"
        )
    if code == "UNAVAILABLE":
        return f"no answer from the store ({reason}); check the network, and endpoint_override in the address"
    return f"the store failed ({reason})"
