"""The console script ``patgate``; ``python -m proxy`` is the same."""

from proxy import startup


def main() -> None:
    """Run the command line, which imports nothing out of the current directory."""
    startup.leave_directory()
    from proxy.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
