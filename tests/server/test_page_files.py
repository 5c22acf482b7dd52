"""What the live page is made of, and under which rules a browser takes it."""

import gzip
import re

import pytest

from jaxserve.server import page

FILES = {file.path: file for file in page.files()}


def test_the_document_its_style_and_its_modules_are_offered():
    assert FILES["/"].content_type == "text/html; charset=utf-8"
    assert FILES["/page/style.css"].content_type == "text/css; charset=utf-8"
    assert FILES["/page/main.js"].content_type == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("path", FILES)
def test_what_a_file_refers_to_is_offered_too(path):
    text = FILES[path].body.decode()
    base = "/" if path == "/" else "/page/"
    named = re.findall(r'(?:href|src)="(?!data:|#|metrics")([^"]+)"', text) if path == "/" else []
    named += re.findall(r'^import .* from "\./([^"]+)";$', text, re.MULTILINE)
    for name in named:
        assert base + name in FILES, name


@pytest.mark.parametrize("path", FILES)
def test_nothing_comes_from_elsewhere_and_nothing_is_inline(path):
    text = FILES[path].body.decode()
    assert re.findall(r"(?:https?:)?//(?:www|[a-z]+\.)[\w./]+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", text) == []


@pytest.mark.parametrize("path", FILES)
def test_what_is_gzipped_is_the_same(path):
    assert gzip.decompress(FILES[path].gzipped) == FILES[path].body


def test_the_page_is_small():
    assert sum(len(file.gzipped) for file in FILES.values()) < 24_000


def test_the_policy_allows_this_server_only():
    rules = set(page.CONTENT_SECURITY_POLICY.split("; "))
    assert rules >= {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"}
    assert "unsafe" not in page.CONTENT_SECURITY_POLICY
    assert page.HEADERS["Content-Security-Policy"] == page.CONTENT_SECURITY_POLICY


def test_without_scripts_it_says_what_to_do():
    (told,) = re.findall(r"<noscript>(.*?)</noscript>", FILES["/"].body.decode(), re.DOTALL)
    assert "JavaScript" in told
    assert "jaxserve status" in told
    assert "metrics" in told
