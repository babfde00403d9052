# The Python image's program: imports most of the standard library, NumPy and Pillow, and reads files of the layer below,
# always in the same order. Prints `ready` when done. With the argument `serve` it then answers HTTP on 127.0.0.1, on the
# port that it prints; with `other` it reads another set of files, so that the two commands differ.
import hashlib
import importlib
import os
import pkgutil
import sys
import warnings

warnings.simplefilter("ignore")
# Open a browser, a window or a terminal, print a poem, or belong to other systems.
SKIP = {"antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "test", "lib2to3", "msilib", "__main__"}


def load(name):
    try:
        importlib.import_module(name)
        return 1
    except Exception:
        return 0


def read(directory, wanted, limit):
    count = 0
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if wanted(name) and os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb") as file:
                hashlib.sha256(file.read(limit)).digest()
            count += 1
    return count


mode = sys.argv[1] if len(sys.argv) > 1 else ""
done = 0
if mode == "other":
    done += read("/usr/share/perl5/Debconf", lambda name: name.endswith(".pm"), 1 << 20)
    done += read("/usr/sbin", lambda name: True, 1 << 20)
else:
    for name in sorted(sys.stdlib_module_names - SKIP):
        done += load(name)
    for package in ("asyncio", "concurrent", "ctypes", "email", "encodings", "html", "http", "importlib", "json",
                    "logging", "multiprocessing", "unittest", "urllib", "wsgiref", "xml", "numpy", "PIL", "yaml"):
        found = importlib.util.find_spec(package)
        if found is None:
            continue
        for module in pkgutil.walk_packages(found.submodule_search_locations or [], package + "."):
            if ".tests" in module.name or module.name.endswith("__main__") or "conftest" in module.name:
                continue
            done += load(module.name)
    done += read("/usr/bin", lambda name: True, 256 << 10)
    done += read("/usr/lib/x86_64-linux-gnu", lambda name: ".so" in name, 64 << 10)
print("ready", done, flush=True)
if mode == "serve":
    import http.server

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = hashlib.sha256(self.path.encode()).hexdigest().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    print("port", server.server_port, flush=True)
    server.serve_forever()
