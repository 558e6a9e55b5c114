"""Names of groups and logs."""

from __future__ import annotations

import pytest
from channels.layers import BaseChannelLayer
from hypothesis import given
from hypothesis import strategies as st

from core.events.groups import session_name, tenant_name

slugs = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
sessions = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


@given(st.tuples(slugs, sessions), st.tuples(slugs, sessions))
def test_two_sessions_have_two_names(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (session_name(*one) == session_name(*other)) == (one == other)


@given(slugs, sessions, st.data())
def test_the_border_between_tenant_and_session_cannot_be_moved(
    tenant: str, session: str, data: st.DataObject
) -> None:
    joined = tenant + session
    border = data.draw(st.integers(0, len(joined)))
    if border != len(tenant):
        assert session_name(joined[:border], joined[border:]) != session_name(tenant, session)


@given(slugs, sessions)
def test_names_are_names_to_channels(tenant: str, session: str) -> None:
    layer = BaseChannelLayer()
    for name in (session_name(tenant, session), tenant_name(tenant)):
        assert layer.require_valid_group_name(name)
        assert len(name) < 100


@given(slugs, sessions)
def test_a_tenants_group_is_no_sessions(tenant: str, session: str) -> None:
    assert tenant_name(tenant) != session_name(tenant, session)


def test_the_session_names_shape_is_public() -> None:
    assert session_name("demo", "s") == session_name("demo", "s")
    assert len(session_name("demo", "s")) == 34
    assert session_name("demo", "s").startswith("s.")


@pytest.mark.parametrize("other", ["demo2", "dem", ""])
def test_tenants_have_groups_of_their_own(other: str) -> None:
    assert tenant_name("demo") != tenant_name(other)
