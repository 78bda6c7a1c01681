"""The settings of ``django_app`` for ``runserver``."""

ROOT_URLCONF = "endings_wsgi"
WSGI_APPLICATION = "endings_wsgi.django_app"
ALLOWED_HOSTS = ("127.0.0.1", "localhost")
SECRET_KEY = "of no worth"
