"""The program of a rank beside rank 0: see `follow`, which says what it is told by its arguments."""

from mint_contracts.importing import without_collecting

if __name__ == "__main__":
    with without_collecting():
        from mint_engine.parallel.follow import main
    main()
