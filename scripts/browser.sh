#!/usr/bin/env bash
# Installs Debian's Chromium and its driver, in which a test looks at a notebook, where they are missing and root may.
set -euo pipefail

if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "no chromium and chromedriver, and no way to install them: the test of notebooks in a browser is skipped" >&2
    exit 0
fi
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends chromium chromium-driver > /dev/null
