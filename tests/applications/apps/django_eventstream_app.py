"""A Django project with django-eventstream's endpoint, its events stored in a database."""

import json
import tempfile
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpRequest, JsonResponse
from django.urls import include, path

folder = tempfile.TemporaryDirectory()
settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of no use here",
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_eventstream"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder.name}/db.sqlite3"}
    },
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    EVENTSTREAM_STORAGE_CLASS="django_eventstream.storage.DjangoModelStorage",
)
django.setup()
call_command("migrate", verbosity=0)


def send(request: HttpRequest, channel: str) -> JsonResponse:
    from django_eventstream import send_event

    send_event(channel, request.GET.get("type", "message"), json.loads(request.body))
    return JsonResponse({"sent": True})


events: Any = include("django_eventstream.urls")
urlpatterns = [
    path("rooms/<channel>/events/", events, {"format-channels": ["{channel}"]}),
    path("rooms/<channel>/send/", send),
]
application = get_asgi_application()
