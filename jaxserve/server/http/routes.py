"""Which path leads where. Paths are taken as they came, percent-encoded, and split before they are decoded."""

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from jaxserve.server.http import site, v1, v2
from jaxserve.server.http.exchange import Handler, Route

_REMEMBERED = 4096
_LONGEST_REMEMBERED = 512


def _get(handler: Handler) -> Mapping[str, Handler]:
    return {"GET": handler, "HEAD": handler}


def _post(handler: Handler) -> Mapping[str, Handler]:
    return {"POST": handler}


_FIXED: Mapping[str, Route] = {
    "/v2": Route(_get(v2.server_metadata)),
    "/v2/health/live": Route(_get(v2.live)),
    "/v2/health/ready": Route(_get(v2.ready)),
    "/livez": Route(_get(v2.live)),
    "/readyz": Route(_get(v2.ready)),
    "/v2/models/stats": Route(_get(v2.statistics)),
    "/v2/repository/index": Route(_post(v2.repository_index)),
    "/v2/trace/setting": Route({**_get(v2.trace_setting), **_post(v2.unsupported)}),
    "/v2/logging": Route({**_get(v2.log_settings), **_post(v2.unsupported)}),
    "/v1/models": Route(_get(v1.list_models), is_openai=True),
    "/v1/embeddings": Route(_post(v1.embed), is_openai=True),
    "/metrics": Route(_get(site.metrics)),
    "/events": Route({"GET": site.events}),
    "/openapi.json": Route(_get(site.openapi)),
    **{file.path: Route(_get(site.serve_file(file))) for file in site.FILES},
}

# Behind /v2/models/{model}[/versions/{version}]
_OF_MODEL: Mapping[tuple[str, ...], Mapping[str, Handler]] = {
    (): _get(v2.model_metadata),
    ("ready",): _get(v2.model_ready),
    ("config",): _get(v2.model_config),
    ("stats",): _get(v2.statistics),
    ("infer",): _post(v2.infer),
    ("trace", "setting"): {**_get(v2.trace_setting), **_post(v2.unsupported)},
}
_OF_REPOSITORY: Mapping[str, Mapping[str, Handler]] = {"load": _post(v2.load), "unload": _post(v2.unload)}
_PREDICT = ":predict"
_NOT_PREDICT = (":classify", ":regress")


class Routes:
    """Finds routes, and remembers those of the paths that come again and again."""

    def __init__(self) -> None:
        self._known: dict[str, Route] = dict(_FIXED)

    def find(self, raw_path: str) -> Route | None:
        """Where a path leads; None for nowhere."""
        route = self._known.get(raw_path)
        if route is not None:
            return route
        path = raw_path.partition("?")[0]
        route = _FIXED.get(path) or _find(path)
        if route is not None and len(raw_path) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _REMEMBERED:
                self._known = dict(_FIXED)
            self._known[raw_path] = route
        return route


def _find(path: str) -> Route | None:
    try:
        parts = [unquote_to_bytes(part).decode() for part in path.split("/")[1:]]
    except UnicodeDecodeError:
        return None
    match parts:
        case ["v2", "models", model, "versions", version, *rest] if model and version:
            handlers = _OF_MODEL.get(tuple(rest))
            return None if handlers is None else Route(handlers, model, version)
        case ["v2", "models", model, *rest] if model:
            handlers = _OF_MODEL.get(tuple(rest))
            return None if handlers is None else Route(handlers, model)
        case ["v2", "repository", "models", model, action] if model and action in _OF_REPOSITORY:
            return Route(_OF_REPOSITORY[action], model)
        case ["v2", "systemsharedmemory" | "cudasharedmemory", *rest]:
            return _shared_memory(rest)
        case ["v1", "models", model] if model.endswith(_PREDICT) and model != _PREDICT:
            return Route(_post(v1.predict_model), model.removesuffix(_PREDICT))
        case ["v1", "models", model, "versions", version] if version.endswith(_PREDICT) and model:
            return Route(_post(v1.predict_model), model, version.removesuffix(_PREDICT))
        case ["v1", "models", model] if model.endswith(_NOT_PREDICT):
            return Route(_post(v1.unsupported))
        case ["v1", "models", model] if model:
            return Route(_get(v1.model_status), model)
        case ["v1", "models", model, "versions", version] if model and version:
            return Route(_get(v1.model_status), model, version)
        case ["v1", "models", model, "metadata"] if model:
            return Route(_get(v1.model_metadata), model)
        case ["v1", "models", model, "versions", version, "metadata"] if model and version:
            return Route(_get(v1.model_metadata), model, version)
        case _:
            return None


def _shared_memory(rest: list[str]) -> Route | None:
    match rest:
        case ["status"] | ["region", _, "status"]:
            return Route(_get(v2.shared_memory_status))
        case ["unregister"] | ["region", _, "unregister"]:
            return Route(_post(v2.nothing_registered))
        case ["region", _, "register"]:
            return Route(_post(v2.unsupported))
        case _:
            return None
