"""`./ops/build-docs` writes the generated pages and the site from the code and the pages as they are."""

from ops.site import build, reference


def main() -> None:
    """Write the generated blocks first: the site is built from them."""
    for path, text in reference.pages().items():
        (build.PAGES / path).write_text(text)
    build.replace(build.SITE)


if __name__ == "__main__":
    main()
