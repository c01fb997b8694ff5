"""`python -m proxy` is `patgate`."""

from proxy.cli.main import main

if __name__ == "__main__":
    main()
