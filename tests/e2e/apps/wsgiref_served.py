"""Serves ``django_app`` by the standard library's server, in the main thread, as ``runserver
--noreload`` does: a thread for each connection.
"""

import socketserver
import sys
from wsgiref.simple_server import WSGIServer, make_server

from endings_wsgi import django_app


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), django_app, Server) as server:
        server.serve_forever()
