#!/usr/bin/env bash
# Make sure that the browser tests find a headless Chromium: use what is installed, else install it on Debian and Ubuntu.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done

if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing chromium for the browser tests"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium >/dev/null
    command -v chromium >/dev/null 2>&1 && exit 0
fi

cat >&2 <<'TEXT'
The browser tests need Chromium, and none was found (looked for chromium, chromium-browser, google-chrome).
Install it, then run the command again:
    Debian, Ubuntu   sudo apt-get install chromium
    Fedora           sudo dnf install chromium
    macOS            brew install --cask chromium
TEXT
exit 1
