"""The API server that tests use is a real one, with MinT's resources."""

from kubernetes import client

from tests.apiserver import ApiServer


def test_it_serves_both_resources_under_their_short_names_and_category(api_server: ApiServer) -> None:
    served = api_server.kubectl("api-resources", "--api-group=mint.dev", "-o", "wide", "--no-headers")
    rows = {line.split()[0]: line.split()[1] for line in served.splitlines()}
    assert rows == {"adapterwaves": "aw", "basemodels": "bm"}
    assert all(line.split()[-1] == "mint" for line in served.splitlines())


def test_python_reaches_it_too(api_server: ApiServer) -> None:
    with api_server.client() as connection:
        assert client.VersionApi(connection).get_code().major == "1"
