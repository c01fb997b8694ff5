"""The console script ``patgate``, also ``python -m proxy``."""

from proxy import startup


def main() -> None:
    """Run the command line, without imports from the current directory."""
    startup.leave_directory()
    from proxy.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
